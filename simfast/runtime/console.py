"""How a long run talks to the terminal it was started from."""

import logging
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

# One Ctrl-C may arrive twice: from the terminal or a scheduler, and handed on by a program that started this one.
SAME_SIGNAL_SECONDS = 1.0


class StopSignals:
    """Context in which Ctrl-C and SIGTERM ask to stop after the current step; one more, a second later or after that,
    stops at once.

    Attributes:
        received: the signal that asked, None until then.
    """

    def __enter__(self) -> "StopSignals":
        self.received: signal.Signals | None = None
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self.received:
            if time.monotonic() - self._since < SAME_SIGNAL_SECONDS:
                return
            raise KeyboardInterrupt
        self.received, self._since = signal.Signals(number), time.monotonic()
        tqdm.write(f"{self.received.name}: finishing this step and saving; once more to stop at once", file=sys.stderr)


class BesideTheBar(logging.Handler):
    """Log lines on standard output that do not tear the progress bar on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def set_up_logging(file: Path | None = None, level: int = logging.INFO) -> None:
    """The project's log from a level on, on the terminal and, where a file is given, appended to that."""
    handlers = [BesideTheBar()] + ([logging.FileHandler(file)] if file else [])
    logging.basicConfig(level=level, format="%(message)s", handlers=handlers, force=True)
