"""Runs of an ablation one after the other, or several at a time; what was interrupted is continued."""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

import simfast
from simfast.analysis.ablation_table import write_tables
from simfast.analysis.begun import SETTINGS, options_to_go_on, require_same_run
from simfast.analysis.rows import Run
from simfast.data.check import check_sample, require_sound
from simfast.data.overlap import require_apart
from simfast.data.parts import arguments_of, open_part
from simfast.models.checkpoint import LAST
from simfast.runtime import lock
from simfast.runtime.console import Progress
from simfast.runtime.files import write_text

log = logging.getLogger("simfast")
CONSOLE = "console.txt"
"""In a run's folder, what it prints where several run at a time."""
SAMPLE_SECONDS = 1.0
# What a run whose `ablate` was killed has to save, before it is taken for one that somebody trains there.
SAVING_SECONDS = 60.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# -P: the current folder is the user's, and may hold anything.
TRAINER = (sys.executable, "-P", "-m", "simfast", "train")


def check_data(runs: list[Run]) -> None:
    """Opens every part of the data that the runs still to do will read, and reads a sample of it once: what is missing
    or cannot be trained on shows now, not hours later. What is only suspicious is said by each run.

    Raises:
        ValueError: the row, and what `open_dataset` or `require_sound` has to say.
    """
    sampled = []
    for run in (run for run in runs if not run.done):
        opened = {}
        try:
            for part, arguments in arguments_of(run.config).items():
                opened[part] = open_part(run.config, part)
                read = part != "target" or run.config.trains_on_target
                if read and (arguments, run.config.skip_bad_files) not in sampled:
                    require_sound(check_sample(opened[part], part, SAMPLE_SECONDS), part, run.config)
                    sampled.append((arguments, run.config.skip_bad_files))
            # A run that has begun goes on, whatever it began with.
            if run.config.method == "target-only" and not (run.config.out / LAST).exists():
                require_apart(run.config, opened)
        except (ValueError, OSError) as error:
            raise ValueError(f"rows: {run.row}: {error}") from error


def run_all(runs: list[Run], trainer: Sequence[str] = TRAINER, jobs: int = 1) -> list[Run]:
    """Do the runs that have no result yet, continuing those begun; the tables are written anew after each.

    Args:
        runs: what `plan` gave.
        trainer: the command that trains, without its arguments.
        jobs: how many at the same time, as far as they do not build on each other. Above one, what a run prints goes to
            `console.txt` in its folder.

    Returns:
        The runs that failed; those after a failed one are still tried, except those that build on it.

    Raises:
        SystemExit: a signal (128 + its number); the runs in progress got it too and have saved; call again to continue.
        ValueError: jobs below 1; a run begun, or done, with other settings, as far as `train --resume` does not take
            them; another program is in the folder of them all, or stays in that of a run.
    """
    if jobs < 1:
        raise ValueError(f"jobs: must be at least 1, got {jobs}")
    out = runs[0].config.out.parent
    out.mkdir(parents=True, exist_ok=True)
    with lock.locked(out, "out"):
        for run in runs:
            _wait_for_its_end(run.config.out)
            require_same_run(run)
        return _run_all(runs, trainer, jobs, out)


def _run_all(runs: list[Run], trainer: Sequence[str], jobs: int, out: Path) -> list[Run]:
    waiting, failed = [run for run in runs if not run.done], []
    with (
        # A single run draws a bar of its own.
        Progress(
            total=len(runs), desc="ablate", unit="run", initial=len(runs) - len(waiting), disable=jobs == 1
        ) as bar,
        _Processes() as processes,
    ):
        while waiting or processes.running:
            for run in waiting.copy():
                cause = next((other for other in failed if other.config.out in _needed(run)), None)
                if cause is not None:
                    text = "%s, seed %d: not tried, as it builds on %s, seed %d, which failed"
                    log.error(text, run.row, run.config.seed, cause.row, cause.config.seed)
                    waiting.remove(run)
                    failed.append(run)
            unfinished = {run.config.out for run in [*waiting, *processes.running]}
            ready = [run for run in waiting if not unfinished.intersection(_needed(run))]
            for run in ready[: jobs - len(processes.running)]:
                waiting.remove(run)
                processes.start(run, _command(run, trainer), quiet=jobs > 1)
                log.info("%s, seed %d: %s (%d more to do)", run.row, run.config.seed, run.config.out, len(waiting))
            for run, code in processes.ended():
                if code:
                    _forget_start(run.config.out)
                    where = f"see {run.config.out / CONSOLE}" if jobs > 1 else "its own message is above"
                    log.error("%s, seed %d: failed with exit code %d, %s", run.row, run.config.seed, code, where)
                    failed.append(run)
                bar.update()
                write_tables(runs, out)
    write_tables(runs, out)
    return failed


def _needed(run: Run) -> list[Path]:
    """The folders of the runs that a run builds on."""
    return [path for path in (run.config.stage1, run.config.weights and run.config.weights.parent) if path]


def _command(run: Run, trainer: Sequence[str]) -> list[str]:
    """What begins or continues a run, whose folder and settings file then exist."""
    run.config.out.mkdir(parents=True, exist_ok=True)
    settings, last = run.config.out / SETTINGS, run.config.out / LAST
    write_text(settings, yaml.safe_dump(run.config.portable(), sort_keys=False))
    if last.exists():
        return [*trainer, "--resume", str(last), *options_to_go_on(run.config)]
    return [*trainer, "--config", str(settings), "--out", str(run.config.out)]


def _wait_for_its_end(folder: Path) -> None:
    """Until no program trains in a run's folder: one whose `ablate` was killed is saving.

    Raises:
        ValueError: it does not end.
    """
    since = None
    while (folder / lock.NAME).exists():
        try:
            with lock.locked(folder, "rows"):
                return
        except ValueError:
            now = time.monotonic()
            if since is None:
                log.info("%s: another program is in it, as one that saves; waiting for its end", folder)
            since = since or now
            if now - since > SAVING_SECONDS:
                raise
        time.sleep(0.1)


class _Processes:
    """The programs that run, one a run. Within this context Ctrl-C and SIGTERM are handed on to them, and they have all
    the time they need to save: subprocess.run would kill them after a quarter of a second. Where this process is
    killed, they get SIGTERM.

    In a thread beside the main one, where Python lets nobody handle signals, the program around does.

    Attributes:
        running: program by run.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "_Processes":
        self.running: dict[Run, subprocess.Popen] = {}
        self._received: int | None = None
        main = threading.current_thread() is threading.main_thread()
        numbers = [number for number in self.SIGNALS if main and signal.getsignal(number) is not None]
        self._before = {number: signal.signal(number, self._hand_on) for number in numbers}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None:  # an error of ours
            self._hand_on(signal.SIGTERM)
        for process in self.running.values():
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, run: Run, command: list[str], quiet: bool) -> None:
        if self._received:  # while none was running
            raise SystemExit(128 + self._received)
        # This very package, also where it is used from a checkout without being installed.
        path = os.pathsep.join(filter(None, (str(Path(simfast.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path}
        with open(run.config.out / CONSOLE, "a") if quiet else contextlib.nullcontext() as console:
            own = {"stdout": console, "stderr": console, "env": environment}
            self.running[run] = subprocess.Popen(command, **own, preexec_fn=_with_us())
        if self._received:  # meanwhile, when nobody could hand it on
            self._hand_on(self._received)

    def ended(self) -> list[tuple[Run, int]]:
        """The runs that are over, with their exit codes; waits until one is.

        Raises:
            SystemExit: a signal stopped them (128 + its number), and all are over.
        """
        over: list[Run] = []
        while self.running and not over:
            time.sleep(0.05)
            over = [run for run, process in self.running.items() if process.poll() is not None]
        codes = [(run, self.running.pop(run).returncode) for run in over]
        # SIGPIPE: whoever read what it printed has gone, and reads nothing of the others either.
        stops = (*self.SIGNALS, signal.SIGPIPE)
        stopped = self._received or next((n for _, code in codes for n in stops if code in (128 + n, -n)), None)
        if stopped:
            self._hand_on(signal.SIGTERM)
            for process in self.running.values():
                process.wait()
            log.info("stopped; the same command goes on from there")
            raise SystemExit(128 + stopped)
        return codes

    def _hand_on(self, number: int, _frame=None) -> None:
        self._received = self._received or number
        for process in self.running.values():
            process.send_signal(number)


def _with_us() -> Callable[[], None] | None:
    """What a program of ours does before it begins, so that it gets SIGTERM when this process is no more: on Linux."""
    if sys.platform != "linux":
        return None
    prctl, ours = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != ours:  # killed a moment ago
            os._exit(128 + signal.SIGTERM)

    return ask


def _forget_start(out: Path) -> None:
    """Removes what is ours of a run that failed before it left anything: it may begin with other settings."""
    if not {path.name for path in out.iterdir()} - {SETTINGS, CONSOLE, lock.NAME}:
        for name in (SETTINGS, lock.NAME):
            (out / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what it printed stays
            out.rmdir()
