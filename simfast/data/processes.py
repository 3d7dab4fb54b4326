"""Work over many files, spread over processes, with one progress bar."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from simfast.runtime.console import Progress

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a program to end: Ctrl-C, schedulers, a terminal that is closed. It goes to the whole process group."""


def spread(
    work: Callable[[Any, Any, Callable[[], None]], Any],
    shared: Any,
    jobs: Iterable[Any],
    workers: int,
    total: int,
    title: str,
    unit: str = "image",
) -> Iterator[Any]:
    """work(shared, job, tick) of each job, in the order in which they finish.

    Ctrl-C and an error stop all of it within an item, and no process outlives this one.

    Args:
        work: a function of a module; calls `tick` after each item of its job.
        shared: its first argument, handed to each process once.
        jobs: its second argument.
        workers: processes; 0 works in this one.
        total: items in all jobs together, for the bar.
        title, unit: of the bar.

    Raises:
        ChildProcessError: a process was killed, as when memory runs out.
        Whatever `work` raises.
    """
    with Progress(total=total, desc=title, unit=unit) as bar:
        if workers == 0:
            for job in jobs:
                yield work(shared, job, bar.update)
            return
        context = multiprocessing.get_context()
        count, stop = context.Value("q", 0), context.Event()
        with ProcessPoolExecutor(workers, context, _begin, (shared, count, stop)) as pool:
            with starting_workers():  # which the first job does
                pending = {pool.submit(_work, work, job) for job in jobs}
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    bar.update(count.value - bar.n)
                    for future in done:
                        yield future.result()
            except BrokenProcessPool as error:
                raise ChildProcessError(f"{title}: a worker process was killed (out of memory?)") from error
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Context in which processes are forked. What asks a whole process group to end waits, in them until
    `leave_signals_to_parent`, in this process until the context's end: it is this one's to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(*numbers: signal.Signals) -> None:
    """Of a process that was forked in `starting_workers`: it ignores these signals, and those that came meanwhile."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


class _Stopped(Exception):
    """The parent wants no more."""


def _begin(shared, count, stop) -> None:
    """Sets up a worker: Ctrl-C is the parent's to handle, and a parent that was killed takes its workers along."""
    global _shared, _count, _stop
    _shared, _count, _stop = shared, count, stop
    leave_signals_to_parent(signal.SIGINT)
    end_with_parent()


def end_with_parent() -> None:
    """Has this process, which multiprocessing started, end as soon as the one that started it is gone."""
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(work: Callable, job: Any) -> Any:
    return work(_shared, job, _tick)


def _tick() -> None:
    with _count.get_lock():
        _count.value += 1
    if _stop.is_set():
        raise _Stopped
