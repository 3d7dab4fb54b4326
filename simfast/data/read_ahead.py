"""Items of a data set read by processes or threads before they are asked for."""

import atexit
import errno
import os
import resource
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from simfast.data.processes import ASKING, end_with_parent, leave_signals_to_parent, starting_workers

# Batches that each process or thread reads ahead.
READ_AHEAD = 2


class Numbered(Protocol):
    """Batches by number, or the error that there is in place of one.

    Attributes:
        cached: whether reading one is no more than copying it.
        pinned: to be set where they are to come in pinned memory.
    """

    cached: bool
    pinned: bool

    def __getitem__(self, number: int) -> Any: ...


def read_ahead(dataset: Numbered, order: Iterable[int], workers: int, pinned: bool) -> Iterator:
    """dataset[i] for i in order, read ahead by workers, in pinned memory if asked for.

    A data set hands an error back as a value: raised in a worker, torch would bury its message in a traceback's text.
    """
    if workers and not dataset.cached:
        items = _by_processes(dataset, order, workers, pinned)
    else:
        dataset.pinned = pinned
        items = _by_threads(dataset, order, workers) if workers else (dataset[i] for i in order)
    with closing(items):  # an error keeps this frame alive, but no reader
        for item in items:
            if isinstance(item, ValueError | OSError):
                raise item
            yield item


def _by_processes(dataset: Numbered, order: Iterable[int], workers: int, pinned: bool) -> Iterator:
    """For what costs computing: decoding pictures, most of which holds Python's lock."""
    end: Callable[[], None] | None = None
    try:
        with warnings.catch_warnings():
            # Of more workers than cores, which wait for a disk at times and are a setting like others.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                dataset,
                batch_size=None,
                sampler=order,
                num_workers=workers,
                prefetch_factor=READ_AHEAD,
                collate_fn=_in_shared_memory,
                pin_memory=pinned,
                worker_init_fn=_begin_worker,
                generator=torch.Generator(),  # without one, torch draws the workers' seed from the global state
            )
            with starting_workers():
                iterator = iter(loader)
        end = partial(_end_workers, weakref.ref(iterator))
        atexit.register(end)  # for an iterator that nobody closed: Python would wait for its workers for ever
        yield from iterator
    except (RuntimeError, OSError) as error:  # torch has no exceptions of its own for these
        text = str(error)
        if os.strerror(errno.ENOSPC) in text and "shared memory" in text:
            rule = "shared memory (/dev/shm) is full of what is read ahead"
            raise OSError(f"{rule}; try fewer --workers, or 0, or more of it, as by docker's --shm-size") from error
        if os.strerror(errno.EMFILE) in text:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            rule = f"--workers {workers} need more open files than this process may have ({limit})"
            raise OSError(f"{rule}; try fewer, or a higher `ulimit -n`") from error
        if "DataLoader worker (pid" in text:
            rule = "a process that reads data was killed (out of memory, or of shared memory?); try fewer --workers"
            raise ChildProcessError(f"{rule}, or 0") from error
        raise
    finally:
        if end is not None:
            end()
            atexit.unregister(end)


def _end_workers(iterator: weakref.ref) -> None:
    """Ends the processes that read ahead, also where they do not answer: torch's own SIGTERM is one they ignore."""
    workers = getattr(iterator(), "_workers", [])
    if workers:
        iterator()._shutdown_workers()
    for worker in workers:
        worker.kill()
        worker.join()


def _by_threads(dataset: Numbered, order: Iterable[int], workers: int) -> Iterator:
    """For a copy out of a file, which leaves Python's lock alone: a tenth of the time it takes to hand the same bytes
    from one process to another."""
    # Memory is pinned for the GPU that is a thread's current one, which is not the starting thread's by itself.
    begin = (torch.cuda.set_device, (torch.cuda.current_device(),)) if dataset.pinned else (None, ())
    with ThreadPoolExecutor(workers, "read", *begin) as pool:
        pending: deque = deque()
        try:
            for i in order:
                pending.append(pool.submit(dataset.__getitem__, i))
                if len(pending) > READ_AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _in_shared_memory(item: Any) -> Any:
    """An item with its tensors where the program that reads them sees them.

    torch would move them later, in a thread in which an error is the end of an item that the program waits for.
    """
    if isinstance(item, torch.Tensor) and item.numel():
        item.share_memory_()
    elif isinstance(item, tuple | list):
        for part in item:
            _in_shared_memory(part)
    return item


def _begin_worker(_worker: int) -> None:
    """The trainer that is asked to end saves, then ends its workers. Where it is killed, they end at once: torch's own
    watch on the trainer begins too late for one that was killed by then."""
    leave_signals_to_parent(*ASKING)
    end_with_parent()
