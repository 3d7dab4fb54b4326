"""Where a report may go: a file, what a link leads to, a pipe, a device, standard output."""

import json
import os
import subprocess
import sys
import threading

import pytest
from running import train

from simfast.cli import call


@pytest.fixture(scope="module")
def evaluation(settings, tmp_path_factory):
    """The command line of an evaluation of seconds, without its report."""
    out = tmp_path_factory.mktemp("run")
    train([*settings, "--out", str(out), "--steps", "1", "--panel-images", "0"])
    return ["evaluate", str(out), "--device", "cpu", "--workers", "0"]


def test_a_link_stays_and_the_file_behind_it_is_the_report(evaluation, tmp_path):
    (tmp_path / "there").mkdir()
    for target in ("there/old.json", "there/new.json"):
        link = tmp_path / f"link to {target.partition('/')[2]}"
        link.symlink_to(target)
    (tmp_path / "there" / "old.json").write_text("old")
    for name in ("old", "new"):
        call([*evaluation, "--report", str(tmp_path / f"link to {name}.json")])
        assert (tmp_path / f"link to {name}.json").is_symlink()
        assert json.loads((tmp_path / "there" / f"{name}.json").read_text())["images"] == 2
    assert sorted(os.listdir(tmp_path / "there")) == ["new.json", "old.json"]


def test_a_pipe_and_a_device_stay_what_they_are(evaluation, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append(json.loads((tmp_path / "pipe").read_text())))
    reader.start()
    call([*evaluation, "--report", str(tmp_path / "pipe")])
    reader.join()
    assert found[0]["images"] == 2
    assert (tmp_path / "pipe").is_fifo()
    call([*evaluation, "--report", "/dev/null"])
    assert os.path.exists("/dev/null")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("into", ["pipe", "file", "more"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1"])
def test_on_standard_output_a_report_follows_what_is_said(into, name, evaluation, tmp_path):
    command, path = [sys.executable, "-m", "simfast", *evaluation, "--report", name], tmp_path / "said.txt"
    path.write_text("before\n")
    with open(path, {"more": "a"}.get(into, "w")) as file:
        done = subprocess.run(command, stdout=subprocess.PIPE if into == "pipe" else file, text=True)
    said = done.stdout if into == "pipe" else path.read_text()
    assert done.returncode == 0
    assert said.startswith("before\n") == (into == "more")
    text, brace, report = said.partition("\n{")
    assert "mIoU" in text
    assert json.loads(brace + report)["images"] == 2
    assert os.listdir(tmp_path) == ["said.txt"]
