"""How a long run talks to the terminal it was started from, or to the file or pipe in its place."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from simfast.runtime.pipe import discard_output

log = logging.getLogger("simfast")
# One Ctrl-C may arrive twice: from the terminal or a scheduler, and handed on by a program that started this one.
SAME_SIGNAL_SECONDS = 1.0
# Between two plain lines about a long work where there is no terminal to draw a bar on.
LINE_SECONDS = 30.0
# What writing to a stream raises that is full, lost, closed or not there at all.
LOST = (OSError, ValueError, AttributeError)


class Progress(tqdm):
    """tqdm's bar where standard error is a terminal; elsewhere no bar and no carriage return, but a plain line in the
    log every half a minute.

    Args:
        iterable, options: tqdm's own. The environment's TQDM_DISABLE counts, too.

    Attributes:
        line_seconds: between two plain lines.
    """

    line_seconds = LINE_SECONDS

    def __init__(self, iterable: Any = None, **options: Any):
        self._what, self._unit = options.get("desc", ""), options.get("unit", "it")
        if sys.stderr is None or not sys.stderr.isatty():
            options["disable"] = True
        super().__init__(iterable, dynamic_ncols=True, **options)
        self._first, self._began = self.n, time.monotonic()
        self._said = self._began

    def __iter__(self) -> Iterator:
        if not self.disable:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float = 1) -> bool | None:
        if not self.disable:
            return super().update(n)
        self.n += n  # tqdm does not count where it draws nothing
        now = time.monotonic()
        if now - self._said >= self.line_seconds and self.n > self._first:
            self._said, rate = now, (self.n - self._first) / (now - self._began)
            left = tqdm.format_interval((self.total - self.n) / rate)
            log.info("%s: %d/%d, %.3g %s/s, %s left", self._what, self.n, self.total, rate, self._unit, left)
        return None


class StopSignals:
    """Context in which Ctrl-C, SIGTERM and the SIGHUP of a terminal that is closed ask to stop after the current step;
    one more of the first two, a second later or after that, stops at once. Where SIGHUP is ignored, as under nohup, it
    stays so. In a thread beside the main one, where Python lets nobody handle signals, the program around does.

    So does a reader of standard output that goes away, as `head` does: as if SIGPIPE, which Python ignores, had asked.
    A run that nobody listens to ends, as every program in a pipe does, but it saves first.

    Attributes:
        received: the signal that asked, None until then.
    """

    _innermost: ClassVar["StopSignals | None"] = None

    def __enter__(self) -> "StopSignals":
        self.received: signal.Signals | None = None
        self._outer, StopSignals._innermost = StopSignals._innermost, self
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            numbers = [signal.SIGINT, signal.SIGTERM]
            numbers += [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
            # None: one that another program in this process has set, in C, and that Python could not set again.
            numbers = [number for number in numbers if signal.getsignal(number) is not None]
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_) -> None:
        StopSignals._innermost = self._outer
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self.received:
            if time.monotonic() - self._since < SAME_SIGNAL_SECONDS or number == signal.SIGHUP:
                return
            raise KeyboardInterrupt
        self.received, self._since = signal.Signals(number), time.monotonic()
        with contextlib.suppress(*LOST):  # an error here would be one in the middle of whatever runs
            text = f"{self.received.name}: finishing this step and saving; once more to stop at once"
            tqdm.write(text, file=sys.stderr)

    @classmethod
    def anywhere(cls) -> bool:
        """Whether there is such a context."""
        return cls._innermost is not None

    @classmethod
    def reader_has_gone(cls) -> bool:
        """Asks the innermost context to stop; False where there is none."""
        if not cls.anywhere():
            return False
        if cls._innermost.received is None:
            cls._innermost.received, cls._innermost._since = signal.SIGPIPE, time.monotonic()
        return True


class BesideTheBar(logging.Handler):
    """Log lines on standard output that do not tear the progress bar on standard error. Those whose `extra` says
    {"on_bar": True} stand in it, too, and are left out on its terminal.

    Where it cannot be written to, as on a full disk or a terminal that is lost, a run goes on without.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_bar", False) and sys.stdout.isatty():
            return
        try:
            tqdm.write(self.format(record))
            sys.stdout.flush()  # a file or a pipe gets each line when it is said
        except BrokenPipeError:
            if not StopSignals.reader_has_gone():
                raise
            discard_output()
        except LOST:
            if not StopSignals.anywhere():
                raise


class _LogFile(logging.FileHandler):
    """One that does not print a traceback for each line that a full disk does not take."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            with contextlib.suppress(*LOST):
                tqdm.write(f"{self.baseFilename}: lines are lost: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(*LOST):  # of lines that are lost, as has been said
            super().close()


class WithTimes(logging.Formatter):
    """Each line behind its date and time, ISO 8601, with the offset from UTC."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        return "\n".join(f"{when} {line}".rstrip() for line in super().format(record).split("\n"))


def on_terminal(level: int = logging.INFO) -> contextlib.AbstractContextManager[None]:
    """Context of a command, in which the project's log goes to standard output from a level on, and nowhere else but
    into files of ours: handlers of a program around do not say it once more."""
    return _said_by(BesideTheBar(level))


@contextlib.contextmanager
def in_file(path: Path | None) -> Iterator[None]:
    """Context of a run, in which the project's log is appended to a file with times; None: to none. The handlers of a
    program around get what they would get without."""
    if path is None:
        yield
        return
    with contextlib.closing(_LogFile(path, encoding="utf-8", errors="backslashreplace")) as handler:
        handler.setLevel(logging.INFO)
        handler.setFormatter(WithTimes())
        with _said_by(handler):
            yield


class _Onward(logging.Handler):
    """What a program around had set up for the project's log before there was a handler of ours."""

    def take(self) -> None:
        self.before = log.level, log.propagate, log.handlers[:]
        self.setLevel(log.getEffectiveLevel())

    def emit(self, record: logging.LogRecord) -> None:
        _, propagate, handlers = self.before
        for handler in handlers:
            if record.levelno >= handler.level:
                handler.handle(record)
        if propagate and log.parent is not None:
            log.parent.callHandlers(record)


_onward, _arranging = _Onward(), threading.Lock()
_ours: list[logging.Handler] = []


@contextlib.contextmanager
def _said_by(handler: logging.Handler) -> Iterator[None]:
    """Context in which a handler of ours is on the project's log; at the end of the last one, the log is as it was."""
    with _arranging:
        if not _ours:
            _onward.take()
        _ours.append(handler)
        _arrange()
    try:
        yield
    finally:
        with _arranging:
            _ours.remove(handler)
            _arrange()


def _arrange() -> None:
    level, propagate, handlers = _onward.before
    if _ours:
        apart = any(isinstance(one, BesideTheBar) for one in _ours)
        handlers = [*_ours] if apart else [*_ours, _onward]
        level, propagate = min(one.level for one in handlers), False
    log.handlers[:] = handlers
    log.propagate = propagate
    log.setLevel(level)
