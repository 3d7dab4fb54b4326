"""The campaign finds what it is there for: each of its means against a planted fault. It is itself run by hand."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from campaign import compare, journal, shim
from campaign.case import Ended
from campaign.progress import Progress

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stands between a program and glibc")

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_SYNC = """
import os
for text in ("old" * 9, "new" * 9):
    with open("file.part", "w") as file:
        file.write(text)
    os.replace("file.part", "file")
"""
WITHOUT_FOLDER = WITHOUT_SYNC.replace("file.write(text)", "file.write(text), file.flush(), os.fsync(file.fileno())")
SAFE = """
import pathlib
from simfast.runtime.files import write_text
for text in ("old" * 9, "new" * 9):
    write_text(pathlib.Path("file"), text)
    print("said to be done", flush=True)
open("said", "w").close()
"""


def run(program, folder, mode, file):
    """A Python program in a folder that is watched."""
    folder.mkdir()
    more = {"LD_PRELOAD": str(shim.build()), "CAMPAIGN_SHIM": f"{mode}:{os.path.realpath(folder)}:{file}"}
    environment = os.environ | more | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def found_after_power_losses(program, tmp_path):
    """What may be in "file" after a power loss, at any moment; None where it is not there. And after the program."""
    folder, record = tmp_path / "work", tmp_path / "record"
    ended = run(program, folder, shim.RECORD, record)
    assert ended.returncode == 0, ended.stderr
    operations = journal.read(record, Path(os.path.realpath(folder)))
    last = [journal.State(len(operations), kind) for kind in range(len(journal.STATES))]
    every = list(journal.states(operations, {}, {}))
    found = []
    for number, state in enumerate([*every, *last]):
        out = tmp_path / str(number)
        out.mkdir()
        journal.restore(operations, {}, {}, state, out)
        content = (out / "file").read_bytes() if (out / "file").exists() else None
        found.append(content)
    return set(found), set(found[len(every) :])


def test_a_file_renamed_without_sync_is_found_empty_or_of_zeros_after_a_power_loss(tmp_path):
    found, _ = found_after_power_losses(WITHOUT_SYNC, tmp_path)
    assert {b"", bytes(27), None, b"old" * 9, b"new" * 9} <= found


def test_a_file_synced_in_a_folder_that_is_not_may_be_the_old_one_and_is_always_whole(tmp_path):
    found, at_end = found_after_power_losses(WITHOUT_FOLDER, tmp_path)
    assert found == {None, b"old" * 9, b"new" * 9}
    assert at_end == found


def test_a_file_that_is_replaced_as_ours_are_is_whole_and_the_new_one_once_it_is_said(tmp_path):
    found, at_end = found_after_power_losses(SAFE, tmp_path)
    assert found <= {None, b"old" * 9, b"new" * 9}
    assert at_end <= {b"new" * 9}


def test_a_disk_is_full_after_so_many_bytes_and_has_room_again_where_a_file_goes(tmp_path):
    left = tmp_path / "left"
    left.write_bytes((1000).to_bytes(8, "little"))
    program = """
import os
with open("a", "wb", buffering=0) as file:
    assert file.write(bytes(800)) == 800 and file.write(bytes(800)) == 200
    try:
        file.write(b"x")
    except OSError as error:
        print(error.errno)
os.unlink("a")
with open("b", "wb", buffering=0) as file:
    print(file.write(bytes(2000)))
"""
    ended = run(program, tmp_path / "work", shim.FULL, left)
    assert ended.stdout.split() == ["28", "1000"], ended.stderr


ONE_LINE = "simfast train: lr: must be positive, got -1.0 in settings.yaml\n"


@pytest.mark.parametrize(
    ("ended", "good"),
    [
        (Ended(0, "all is well", ""), True),
        (Ended(1, "", ONE_LINE), True),
        (Ended(1, "", ""), False),
        (Ended(1, "", ONE_LINE * 2), False),
        (Ended(1, "", ONE_LINE.replace("settings", "other")), False),
        (Ended(1, "", "Traceback (most recent call last):\n" + ONE_LINE), False),
        (Ended(0, "Exception ignored in: <function>", ""), False),
        (Ended(-7, "", ""), False),
        (Ended(None, "", ""), False),
    ],
)
def test_a_command_ends_well_or_says_in_one_line_what_is_wrong_and_where(ended, good):
    assert (ended.trouble("settings.yaml") is None) == good


def test_one_bit_of_a_tensor_or_a_row_and_a_file_left_behind_are_a_difference(tmp_path):
    weights = torch.zeros(5)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        torch.save({"model": {"x": weights}, "seconds": random.random()}, tmp_path / name / "last.pt")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "seg": 0.5}\n')
    wanted = compare.contents(tmp_path / "one")
    assert compare.difference(tmp_path / "two", wanted) is None
    (tmp_path / "two/last.pt.part").touch()
    assert "last.pt.part" in compare.difference(tmp_path / "two", wanted)
    (tmp_path / "two/last.pt.part").unlink()
    (tmp_path / "two/metrics.jsonl").write_text('{"step": 1, "seg": 0.50000001}\n')
    assert "metrics.jsonl" in compare.difference(tmp_path / "two", wanted)
    weights.view(torch.int32)[3] = 1
    torch.save({"model": {"x": weights}}, tmp_path / "one/last.pt")
    assert "last.pt" in compare.difference(tmp_path / "one", wanted)


def test_a_campaign_goes_on_where_it_was_and_counts_what_was_bad(tmp_path):
    first = Progress(tmp_path / "progress.json", {"seed": 0})
    assert [first.take("kills"), first.take("kills"), first.take("power")] == [0, 1, 0]
    assert first.add("kills", 0, [("kill -9: train", 1, [])], 2.0) == []
    assert first.add("kills", 1, [("kill -9: train", 3, ["other bits"])], 2.0) == [
        "kill -9: train (kills 1): other bits"
    ]
    again = Progress(tmp_path / "progress.json", {"seed": 0})
    assert [again.take("power"), again.take("kills")] == [0, 2]  # the first was not over
    line = next(line for line in again.table().splitlines() if "kill -9" in line)
    assert [cell.strip() for cell in line.split("|")] == ["", "kill -9: train", "4", "3", "1", "4", ""]
    with pytest.raises(SystemExit, match="another --out"):
        Progress(tmp_path / "progress.json", {"seed": 1})
