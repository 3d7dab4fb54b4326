"""Ctrl-C that is not lost, wherever it comes."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

AGAIN_SECONDS = 0.01
# After an interrupt that a library swallowed, until what it left undone has shown: as NumPy, half imported by torch.
SHOWS_SECONDS = 10.0
_last = -SHOWS_SECONDS


@contextlib.contextmanager
def interrupts_heard() -> Iterator[None]:
    """Context of a whole program. Where Python lets no error out, as while an object is deleted, it prints a
    KeyboardInterrupt and goes on; in here it says nothing and interrupts once more, right after. While Python ends
    after it, when there is nothing left to interrupt, it says nothing either."""
    global _last
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if found.exc_type is not KeyboardInterrupt:
            before(found)
            return
        with contextlib.suppress(RuntimeError):  # there are no more threads: the program ends anyway
            interrupt = signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
            again = threading.Timer(AGAIN_SECONDS, *interrupt)
            again.daemon = True
            again.start()

    sys.unraisablehook = hook
    main = threading.current_thread() is threading.main_thread()  # Python sets handlers nowhere else
    # Where a shell or a program around has it ignored or handled, it stays so.
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        _last = -SHOWS_SECONDS
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _without_interrupts if before is sys.__unraisablehook__ else before


def _interrupt(_number: int, _frame: Any) -> None:
    global _last
    _last = time.monotonic()
    raise KeyboardInterrupt


def _without_interrupts(found: Any) -> None:
    if found.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(found)


def comes_of_an_interrupt(error: BaseException | None) -> bool:
    """Whether an error is what code made of a KeyboardInterrupt that came in its middle, or a moment ago."""
    if time.monotonic() - _last < SHOWS_SECONDS:
        return True
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
