"""Files are whole or not there, and one program at a time is in a folder."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from simfast.runtime.files import replacing, unfinished, write_text
from simfast.runtime.lock import NAME, locked, tidy


def test_an_error_leaves_the_file_as_it_was_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write({}["half"])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_folder_that_is_not_there_is_told_by_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "nowhere" / "report.json", "text")
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{tmp_path}/nowhere/report.json'"


def test_file_and_folder_are_on_the_disk_before_it_is_over(tmp_path, monkeypatch):
    done, real = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("renamed"), real(old, new)))
    write_text(tmp_path / "a", "text")
    assert done == [str(tmp_path / "a.part"), "renamed", str(tmp_path)]


def test_a_full_disk_is_named_whatever_a_library_makes_of_it(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "x.part").symlink_to("/dev/full")

    def save(file):
        try:
            file.write(bytes(2**20))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None

    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "x") as file:
        save(file)
    assert str(tmp_path / "x") in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "text"


def test_what_is_no_regular_file_is_written_to_directly(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "text")
    reader.join()
    assert found == ["text"]
    assert os.listdir(tmp_path) == ["pipe"]


def test_the_longest_name_can_be_written(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert os.listdir(tmp_path) == ["x" * 255]
    assert unfinished(tmp_path / ("x" * 255)) != unfinished(tmp_path / ("x" * 254 + "y"))


HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from simfast.runtime.lock import locked
with locked(Path(sys.argv[1]), "out"):
    if sys.argv[2:]:  # a worker that outlives its parent
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
    print("in", flush=True)
    time.sleep(60)
"""


def holder(folder, *more):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    return process


def test_a_second_program_is_told_which_one_is_in_the_folder(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"^out: .*{tmp_path.name}.*{process.pid}"), locked(tmp_path, "out"):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_lock_dies_with_its_process_and_no_worker_holds_it(tmp_path):
    process = holder(tmp_path, "worker")
    process.kill()
    process.wait()
    with locked(tmp_path, "out"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_it_is_said_and_goes_on(number, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with locked(tmp_path, "out"):
        assert f"{tmp_path}: nothing keeps a second program out" in caplog.text
    assert os.listdir(tmp_path) == []


def test_on_a_full_disk_no_lock_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/{NAME}'"), locked(tmp_path, "out"):
            pass
    assert os.listdir(tmp_path) == []
    with locked(tmp_path, "out"):
        pass


def test_that_a_lock_is_gone_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("simfast.runtime.lock.sync_folder", lambda folder: synced.append((folder, os.listdir(folder))))
    with locked(tmp_path, "out"):
        synced.clear()
    assert synced == [(tmp_path, [])]


def test_a_lock_on_a_file_that_its_last_program_has_just_removed_is_taken_anew(tmp_path, monkeypatch):
    calls, real = [], fcntl.lockf

    def late(number, how):
        if not calls:
            (tmp_path / NAME).unlink()
        calls.append(number)
        real(number, how)

    monkeypatch.setattr("fcntl.lockf", late)
    with locked(tmp_path, "out"):
        assert (tmp_path / NAME).exists()
    assert len(calls) == 2


def test_two_threads_do_not_share_a_folder(tmp_path):
    with locked(tmp_path, "out"):
        with pytest.raises(ValueError, match="another part of this one"), locked(tmp_path, "cache"):
            pass
        with pytest.raises(ValueError, match="another part of this one"), locked(tmp_path, "cache"):
            pass
    with locked(tmp_path, "out"):
        pass


def test_the_lock_that_a_killed_program_left_goes_and_that_of_one_at_work_stays(tmp_path):
    (tmp_path / NAME).write_text("{}")
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path, "out"):
        tidy(tmp_path)
        assert (tmp_path / NAME).exists()
