"""The end of a program whose output nobody reads any more."""

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Context of a whole program, the outermost one: where the reader of standard output goes away, as `head` does, it
    ends without a word, with the status that a shell gives a program that SIGPIPE ended.

    Not by SIGPIPE's own action, which would end it at once, and for every broken socket, too: a training run still
    saves its checkpoint; see `simfast.runtime.console.StopSignals`. Streams that are closed are opened to nowhere, and
    of a word, as a file's name, what their encoding does not have is written as escapes.

    Raises:
        SystemExit: 141, where what was still to be written has no reader and nothing else had failed.
    """
    _open_streams()
    try:
        yield
        sys.stdout.flush()  # what Python would else do when nobody can catch its error any more
    except BaseException as error:
        if _comes_of_a_broken_pipe(error) and _reader_is_gone():
            discard_output()
            raise SystemExit(128 + signal.SIGPIPE) from None
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output()
            if isinstance(error, SystemExit) and not error.code:
                raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as failure:
            # Whoever asked for this output does not get it, which is no good end; any other one says more.
            discard_output()
            if isinstance(error, SystemExit) and not error.code:
                raise SystemExit(f"standard output: {failure}") from None
        raise
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):  # else Python would end with a status of its own
            discard_output(sys.stderr)


def _comes_of_a_broken_pipe(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__context__
    return error is not None


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe without a reader: the broken pipe may have been another one."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except io.UnsupportedOperation:  # not a file at all
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard_output(stream: TextIO | None = None) -> None:
    """Whatever is still written to a stream, by default standard output, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)


def _open_streams() -> None:
    """Of the three standard streams, those that are closed: else the next file that is opened would be in their place,
    and take what libraries print there."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  open to the end
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
