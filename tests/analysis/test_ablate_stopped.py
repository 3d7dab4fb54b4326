"""An ablation that is stopped or killed, and the runs that it has in progress."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from simfast.analysis import ablate
from simfast.analysis.rows import plan

SLOW_TRAINER = """
import pathlib, signal, sys, time
from simfast.runtime.console import StopSignals
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with StopSignals() as stop:
    (out / "begun").touch()
    while not stop.received:
        time.sleep(0.01)
    time.sleep(0.5)  # longer than subprocess.run leaves a program after Ctrl-C
    (out / "last.pt").touch()
sys.exit(128 + stop.received)
"""


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_reaches_the_runs_in_progress_which_have_time_to_save(number, jobs, shared, tmp_path):
    trainer = tmp_path / "slow.py"
    trainer.write_text(SLOW_TRAINER)
    runs = plan(["aa", "aa+sim", "source-only"], [0], shared)
    begun = [run.config.out / "begun" for run in runs[:jobs]]

    def stop():
        while not all(path.exists() for path in begun):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        ablate.run_all(runs, [sys.executable, str(trainer)], jobs)
    assert ended.value.code == 128 + number
    thread.join()
    assert [(run.config.out / "last.pt").exists() for run in runs] == [i < jobs for i in range(3)]
    assert not runs[jobs].config.out.exists()


def test_a_signal_that_comes_while_a_run_is_being_started_reaches_it(shared, tmp_path, monkeypatch):
    trainer, start = tmp_path / "slow.py", subprocess.Popen
    ended = tmp_path / "by itself"
    trainer.write_text(f"import pathlib, time\ntime.sleep(20)\npathlib.Path({str(ended)!r}).touch()")

    def interrupted(*given, **more):
        process = start(*given, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        ablate.run_all(plan(["aa"], [0], shared), [sys.executable, str(trainer)])
    assert not ended.exists()


# A run that keeps its folder and takes its time to save, in a program that does an ablation of it.
ABLATION = """
import dataclasses, pathlib, sys
from simfast.analysis import ablate
from simfast.analysis.rows import plan
from simfast.config.presets import PRESETS
shared = dataclasses.replace(PRESETS["gta5"], out=pathlib.Path(sys.argv[1]))
ablate.run_all(plan(["aa"], [0], shared), [sys.executable, sys.argv[2]])
"""
KEEPING = """
import pathlib, signal, sys, time
from simfast.runtime.console import StopSignals
from simfast.runtime.lock import locked
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with locked(out, "out"), StopSignals() as stop:
    (out / "begun").touch()
    while not stop.received:
        time.sleep(0.01)
    time.sleep(1)
    (out / "last.pt").touch()
sys.exit(128 + stop.received)
"""


def test_a_killed_ablation_takes_its_run_along_which_saves_and_the_next_one_waits_for_that(
    shared, trainer, tmp_path, monkeypatch, caplog
):
    (tmp_path / "keeping.py").write_text(KEEPING)
    first = subprocess.Popen([sys.executable, "-c", ABLATION, str(tmp_path), str(tmp_path / "keeping.py")])
    (run,) = plan(["aa"], [0], shared)
    while not (run.config.out / "begun").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(ValueError, match=r"out: .* must be used by one program at a time, got one in it \(.*wait"):
        ablate.run_all([run], trainer)
    first.kill()
    first.wait()
    caplog.set_level(logging.INFO, "simfast")
    monkeypatch.setattr(ablate, "SAVING_SECONDS", 0.3)
    with pytest.raises(ValueError, match=r"rows: .*aa-seed0 must be used by one program at a time"):
        ablate.run_all([run], trainer)
    monkeypatch.undo()
    assert ablate.run_all([run], trainer) == []
    assert (tmp_path / "calls.txt").read_text().split() == ["aa-seed0", "resumed"]
    assert caplog.text.count("another program is in it, as one that saves; waiting for its end") == 2
