"""A run inside another program leaves it as it was: its log, pictures, signals, random numbers, switches."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from simfast.training.switches import own_switches


def hosted(folder, how):
    """What a host finds changed, and standard output."""
    program = [sys.executable, str(Path(__file__).with_name("host.py")), str(folder), how]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done


@pytest.mark.parametrize("how", ["run", "run-thread", "command-thread", "command", "error"])
def test_a_host_is_as_it_was(how, tmp_path):
    found, done = hosted(tmp_path, how)
    assert (found["by importing"], found["by running"]) == ([], [])
    torch.manual_seed(7)
    assert found["drawn"] == torch.rand(3, dtype=torch.float64).tolist()
    (result,) = found["result"]
    if how == "error":
        assert "no such file" in result
        assert found["written"] == []
    else:
        assert "'best'" in result
        assert {"best.pt", "last.pt", "curve.png", "result.json", "log.txt"} <= {*found["written"]}
        said = (tmp_path / how / "log.txt").read_text()
        assert ("step 1: " in said, "run folder" in said) == (True, True)
    if how.startswith("command"):
        assert found["heard"] == []
        assert done.stdout.count("step 1: ") == 1
    else:  # what is no warning, a host that listens to warnings does not hear
        assert done.stdout == ""
        assert [line for line in found["heard"] if line[1] not in ("WARNING", "ERROR")] == []
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("asked", [True, False])
def test_a_gpu_is_told_whether_the_same_work_gives_the_same_bits(asked, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with own_switches(asked):
        assert torch.are_deterministic_algorithms_enabled() == asked
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if asked else None)
        assert torch.backends.cudnn.benchmark == (not asked)
        assert not torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # of the program around
    with own_switches(asked):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_two_runs_in_one_process_are_refused():
    with own_switches(True):
        refused = []

        def second():
            try:
                with own_switches(False):
                    pass
            except ValueError as error:
                refused.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert refused == ["train: one run at a time in a process must have torch's switches, got a second one"]
        assert torch.are_deterministic_algorithms_enabled()
    with own_switches(True):  # and the next one is welcome
        pass
