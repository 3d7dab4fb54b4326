"""One case of the campaign: a folder of its own, the commands that are run in it, and what is asked of each."""

import atexit
import contextlib
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import shim
from .narrow import narrow

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240.0
"""A command that takes longer hangs: the longest takes some 20 seconds on a busy machine."""
GRACE_SECONDS = 12.0
"""What a killed program's processes have to notice it: torch's data workers look every 5 seconds."""
# Never right, whatever the status is.
LOG_TOO = "log.txt: lines are lost: "
"""On a full disk the log says for itself that it is not whole."""
TRACES = ("Traceback (most recent call last)", "Exception ignored in", "--- Logging error ---", "Fatal Python error")
REAPER = 36  # PR_SET_CHILD_SUBREAPER


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal that killed it, None for too long; and what it
    printed."""

    status: int | None
    out: str
    err: str

    def trouble(self, *names: str, may_be: Sequence[int] = (0, 1, 2)) -> str | None:
        """What is wrong with that, None where nothing is: it is done, or says in one line why not, with one of `names`
        in it."""
        both = self.out + self.err
        for trace in TRACES:
            if trace in both:
                return f"{trace}: {both[both.index(trace) :][-600:]}"
        if self.status is None:
            return f"hangs: {both[-300:]}"
        if self.status not in may_be:
            return f"ended with {self.status}: {both[-600:]}"
        if self.status == 0:
            return None
        lines = [line for line in self.err.splitlines() if line.strip() and LOG_TOO not in line]
        # An ablation's runs each say what they have to say; of an option's value, tyro says it, in a box.
        clear = lines and all(line.startswith("simfast ") for line in lines)
        runs = self.out.count("failed with exit code ") + 1
        if self.status != 2 and (not clear or len(lines) > runs):
            return (
                f"must say in one line what is wrong, got {len(lines)}: {self.err[-600:]!r} after {self.out[-200:]!r}"
            )
        if names and not any(name in both for name in names):
            return f"must name {' or '.join(names)}, got {self.err[-600:]!r}"
        return None


@dataclass
class Running:
    """A command that was started.

    Attributes:
        pid: its first process, which leads a group of its own.
    """

    pid: int
    log: Path
    status: int | None = None
    over: bool = False

    def poll(self) -> bool:
        """Whether it is over."""
        if not self.over:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.over, self.status = True, os.waitstatus_to_exitcode(status)
        return self.over

    def wait(self, limit: float = LIMIT_SECONDS) -> Ended:
        """How it ended; what hangs is killed, with its group."""
        end = time.monotonic() + limit
        while not self.poll():
            if time.monotonic() > end:
                self.kill(signal.SIGKILL, group=True)
                os.waitpid(self.pid, 0)
                self.over, self.status = True, None
                break
            time.sleep(0.005)
        err = self.log.with_suffix(".err")
        return Ended(self.status, *(path.read_text(errors="replace") for path in (self.log, err)))

    def kill(self, number: int, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)


class Case:
    """A folder for one case; commands run in WORK, what they print is beside it.

    Attributes:
        work: where the commands run, empty at first.
        rng: of this case's seed.
    """

    def __init__(self, folder: Path, seed: Any):
        self.folder, self.work, self.rng = folder, folder / "work", random.Random(str(seed))
        shutil.rmtree(folder, ignore_errors=True)
        self.work.mkdir(parents=True)
        self._number = 0

    def start(self, argv: Sequence[str], full: int | None = None, record: Path | None = None, new: bool = False):
        """Starts `simfast ARGV` in a session of its own.

        Args:
            argv: the command line.
            full: the disk has so many bytes left.
            record: file to record what is done to files in `work`.
            new: as a user starts it, by a Python of its own; else a fork of this process.
        """
        self._number += 1
        log = self.folder / f"{self._number}.out"
        for path in (log, log.with_suffix(".err")):
            path.touch()  # here: a command may be killed before it does anything
        with open(self.folder / "commands.txt", "a") as commands:
            commands.write(f"simfast {' '.join(map(str, argv))}\n")
        budget = self.folder / "left"
        if full is not None:
            budget.write_bytes(full.to_bytes(8, "little"))
        arming = (shim.FULL, self.work, budget) if full is not None else record and (shim.RECORD, self.work, record)
        pid = os.fork()
        if pid == 0:
            _become(list(map(str, argv)), self.work, log, arming, new)
        return Running(pid, log)

    def run(self, argv: Sequence[str], limit: float = LIMIT_SECONDS, **how: Any) -> Ended:
        """Runs `simfast ARGV` to its end."""
        return self.start(argv, **how).wait(limit)

    def orphans(self) -> str | None:
        """What is still running of the commands that are over, after a while; it is ended then."""
        end = time.monotonic() + GRACE_SECONDS
        while left := descendants():
            if time.monotonic() > end:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return f"processes that outlive their program by {GRACE_SECONDS:g} s: {sorted(left.values())}"
            time.sleep(0.02)
        return None


def isolate(case) -> None:
    """A process that runs cases gets what their commands leave behind as its own children."""
    ctypes.CDLL(None).prctl(REAPER, 1, 0, 0, 0)


def descendants() -> dict[int, str]:
    """The processes below this one, without those that are over: command line by id."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    parents[int(entry.name)] = (int(parent), line[-100:])
    found, fresh = {}, {os.getpid()}
    while fresh:
        fresh = {pid for pid, (parent, _) in parents.items() if parent in fresh}
        found |= {pid: parents[pid][1] for pid in fresh}
    return found


def _become(argv: list[str], work: Path, log: Path, arming: tuple | None, new: bool) -> None:
    """The rest of a forked process's life: the command."""
    code, called = 99, False
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(work)
        for stream, path in ((1, log), (2, log.with_suffix(".err"))):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        if arming:
            shim.arm(*arming)
        if new:
            os.execve(sys.executable, [sys.executable, "-P", "-m", "simfast", *argv], os.environ)
        called = True
        code = _called(argv)
    except BaseException as error:
        if not called and isinstance(error, KeyboardInterrupt):  # before it began
            code = 128 + signal.SIGINT
        elif code == 99:  # else a signal came when the command had ended
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def _called(argv: list[str]) -> int:
    from simfast.cli import main

    narrow()
    sys.argv = ["simfast", *argv]
    try:
        main(argv)
    except SystemExit as error:  # as the interpreter takes it
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1


def environment() -> dict[str, str]:
    """What the campaign and all that it starts run with: one thread each, the recorder loaded, narrow networks."""
    path = [str(ROOT), str(Path(__file__).with_name("inside")), os.environ.get("PYTHONPATH")]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    more = {"LD_PRELOAD": str(shim.build()), "SIMFAST_CAMPAIGN": "narrow", "OMP_WAIT_POLICY": "passive"}
    more |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
    return os.environ | threads | more | {"COLUMNS": "200"}


def again() -> None:
    """Runs this program anew in `environment`, where it is not yet."""
    if not shim.is_loaded():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment())


def quiet_run(command: Sequence[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False)
