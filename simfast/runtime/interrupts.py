"""Ctrl-C that is not lost, and harms nothing, wherever it comes."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.02
LONGEST_IMPORT = 30.0
"""Seconds for which an interrupt waits for an import."""
IMPORTING = "<frozen importlib._bootstrap>"
_waits_since: float | None = None


@contextlib.contextmanager
def interrupts_heard() -> Iterator[None]:
    """Context of a whole program, for Ctrl-C as Python has it.

    One that comes in the middle of an import waits for its end: libraries take it for something else there, as torch
    for a NumPy that is not installed, or abort. Where Python lets no error out, as while an object is deleted, it
    prints a KeyboardInterrupt and goes on; in here it says nothing and interrupts once more, right after. While Python
    ends after it, when there is nothing left to interrupt, it says nothing either. SIGALRM is used for it.
    """
    global _waits_since
    before, alarm = sys.unraisablehook, signal.getsignal(signal.SIGALRM)

    def hook(found: Any) -> None:
        if found.exc_type is KeyboardInterrupt:
            _interrupt_again()
        else:
            before(found)

    main = threading.current_thread() is threading.main_thread()  # Python sets handlers nowhere else
    # Where a shell or a program around has it ignored or handled, it stays so.
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if main:
        sys.unraisablehook = hook
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is _interrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if main:
            sys.unraisablehook = _without_interrupts if before is sys.__unraisablehook__ else before
        _waits_since = None


def _interrupt(_number: int, frame: FrameType | None) -> None:
    global _waits_since
    now = time.monotonic()
    if _waits_since is None:
        _waits_since = now
    if now - _waits_since < LONGEST_IMPORT and _is_importing(frame):
        _interrupt_again()
        return
    _waits_since = None
    raise KeyboardInterrupt


def _interrupt_again() -> None:
    # Not by a thread: this may come in the middle of another one's start, and wait for its locks for ever.
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != IMPORTING:
        frame = frame.f_back
    return frame is not None


def _without_interrupts(found: Any) -> None:
    if found.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(found)


def comes_of_an_interrupt(error: BaseException | None) -> bool:
    """Whether an error is what code made of a KeyboardInterrupt that came in its middle."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
