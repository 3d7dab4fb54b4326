"""Batches of both domains for ever, each a pure function of (seed, position); and a data set in order, to be scored."""

import atexit
import hashlib
import itertools
import signal
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simfast.data.cache import CachedDataset
from simfast.data.dataset import SegmentationDataset

Dataset = SegmentationDataset | CachedDataset


class Batch(NamedTuple):
    """One training batch; B images of each domain."""

    source_images: Tensor
    """uint8 [B, 3, H, W], RGB."""
    source_labels: Tensor
    """uint8 [B, H, W], train ids."""
    target_images: Tensor | None
    """uint8 [B, 3, H', W'], RGB; None where no target is loaded."""
    target_labels: Tensor | None = None
    """uint8 [B, H', W'], train ids (pseudo labels); None where the target is not labelled."""


class DomainLoader:
    """Endless batches: iterating goes on from `position`, and batch p is the same whatever came before it.

    Each domain walks through permutations of its own, one an epoch, drawn from (seed, domain, epoch); a batch may span
    two epochs. Sample number k of a domain is mirrored, with its label, by a coin drawn from (seed, domain, k). So a
    resumed run sees what a straight one does, with any number of workers. One iteration at a time.

    Args:
        source: labelled data set.
        target: data set, or None; its labels are used where it has any.
        batch_size: images of each domain in a batch.
        seed: any integer.
        workers: processes that read ahead; 0 reads in this one.
        flip: mirror half of the images.
        position: number of the next batch.

    Raises:
        ValueError: while iterating, what a data set raises for a bad file, whichever process met it.
    """

    def __init__(
        self,
        source: Dataset,
        target: Dataset | None,
        batch_size: int,
        seed: int,
        workers: int,
        flip: bool,
        position: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
        if position < 0:
            raise ValueError(f"position: must not be negative, got {position}")
        self.position = position
        """Batches handed out so far, those read ahead not counted: what a checkpoint has to keep."""
        self._batches = _Batches(source, target, batch_size, seed, flip)
        self._workers = workers

    def __iter__(self) -> Iterator[Batch]:
        for batch in _read(self._batches, itertools.count(self.position), self._workers):
            self.position += 1
            yield batch


class EvaluationLoader:
    """Batches in order: (images uint8 [B, 3, H, W], labels, a list of uint8 [H', W'] at their own sizes, names)."""

    def __init__(self, dataset: Dataset, batch_size: int, workers: int):
        self._groups = _Groups(dataset, batch_size)
        self._workers = workers

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor], list[str]]]:
        return _read(self._groups, range(len(self)), self._workers)


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int) -> EvaluationLoader:
    """A data set in order, each image once; the last batch may be smaller. Arguments and errors as `DomainLoader`'s."""
    return EvaluationLoader(dataset, batch_size, workers)


class _Batches:
    """Batch number p, read where it is asked for."""

    def __init__(self, source: Dataset, target: Dataset | None, batch_size: int, seed: int, flip: bool):
        self.source, self.target, self.batch_size, self.seed, self.flip = source, target, batch_size, seed, flip

    def __getitem__(self, p: int) -> Batch | ValueError:
        try:
            images, labels = zip(*self._samples("source", self.source, p), strict=True)
            target = target_labels = None
            if self.target is not None:
                target, target_labels = zip(*self._samples("target", self.target, p), strict=True)
                target, target_labels = _stack(target), _stack(target_labels) if target_labels[0].size else None
            return Batch(_stack(images), _stack(labels), target, target_labels)
        except ValueError as error:
            return error

    def _samples(self, domain: str, dataset: Dataset, p: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for k in range(p * self.batch_size, (p + 1) * self.batch_size):
            epoch, place = divmod(k, len(dataset))
            image, label, _ = dataset[_permutation(len(dataset), self.seed, domain, epoch)[place]]
            turn = -1 if self.flip and _draw(self.seed, domain, "flip", k) % 2 else 1
            yield image.numpy()[..., ::turn], label.numpy()[..., ::turn]


class _Groups:
    """Group number i of a data set's consecutive items."""

    def __init__(self, dataset: Dataset, size: int):
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.size)

    def __getitem__(self, i: int) -> tuple[Tensor, list[Tensor], list[str]] | ValueError:
        try:
            last = min((i + 1) * self.size, len(self.dataset))
            images, labels, names = zip(*(self.dataset[j] for j in range(i * self.size, last)), strict=True)
            return _stack([image.numpy() for image in images]), list(labels), list(names)
        except ValueError as error:
            return error


def _read(dataset, order: Iterable[int], workers: int) -> Iterator:
    """dataset[i] for i in order, read ahead by workers.

    A data set hands an error back as a value: raised in a worker, torch would bury its message in a traceback's text.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=torch.Generator(),  # without one, torch draws the workers' seed from the global state
    )
    iterator = iter(loader)
    at_exit = partial(_end_workers, weakref.ref(iterator))
    atexit.register(at_exit)
    try:
        for item in iterator:
            if isinstance(item, ValueError):
                raise item
            yield item
    finally:
        atexit.unregister(at_exit)
        del iterator  # now, and its workers with it: an error keeps this frame alive


def _end_workers(iterator: weakref.ref) -> None:
    """Ends what reads ahead for an iterator that nobody closed: at exit Python would send its workers a SIGTERM, which
    they ignore, and wait for them for ever."""
    if hasattr(iterator(), "_shutdown_workers"):
        iterator()._shutdown_workers()


def _stack(items: Sequence[np.ndarray]) -> Tensor:
    """By NumPy: torch would wake all its threads for a copy of some kilobytes, and wait for them on a busy CPU."""
    return torch.from_numpy(np.stack(items))


def _as_is(item):
    return item


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer saves, then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _draw(*key) -> int:
    """A number in [0, 2**63) that depends on the key alone, and evenly so."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


@lru_cache(maxsize=4)  # two domains, and the seam between two epochs
def _permutation(num: int, seed: int, domain: str, epoch: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(_draw(seed, domain, "epoch", epoch))
    return tuple(torch.randperm(num, generator=generator).tolist())
