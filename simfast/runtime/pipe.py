"""The end of a program whose output nobody reads any more."""

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
    """Context of a whole program, the outermost one: where the reader of standard output goes away, as `head` does, it
    ends without a word, with the status that a shell gives a program that SIGPIPE ended.

    Not by SIGPIPE's own action, which would end it at once, and for every broken socket, too: a training run still
    saves its checkpoint; see `simfast.runtime.console.StopSignals`.

    Raises:
        SystemExit: 141, where what was still to be written has no reader and nothing else had failed.
    """
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
        raise


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


def discard_output() -> None:
    """Whatever is still written to standard output goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
