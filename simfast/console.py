"""How a long run talks to the terminal it was started from."""

import logging
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm


class StopSignals:
    """Context in which Ctrl-C and SIGTERM ask to stop after the current step; a second one stops at once.

    Not within a second of the first: a scheduler may send its signal to a process and to the one that started it,
    which passes it on.

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
            if time.monotonic() - self._since < 1:
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
