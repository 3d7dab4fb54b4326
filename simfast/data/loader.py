"""Batches of both domains for ever, each a pure function of (seed, position); and a data set in order, to be scored."""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simfast.data.cache import CachedDataset
from simfast.data.order import GO_ON, Dataset, Mixture, draw, sample
from simfast.data.read_ahead import read_ahead

log = logging.getLogger("simfast")
CPU = torch.device("cpu")


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
    resumed run sees what a straight one does, with any number of workers. One iteration at a time. Where the source is
    several data sets, `Mixture` says which of them sample k is of.

    Of several ranks, each gets its share: batch p of all ranks, one after the other, is batch p of a single loader with
    ranks * batch_size images.

    Args:
        source: labelled data set, or several mixed by share.
        target: data set, or None; its labels are used where it has any.
        batch_size: images of each domain in a batch.
        seed: any integer.
        workers: processes that read ahead, or threads where all data come from a cache; 0 reads when asked.
        flip: mirror half of the images.
        position: number of the next batch.
        device: where the batches are to be; see `on_device`.
        rank, ranks: which share, of how many.
        skip: so many bad files may there be, for each of which the next one in the epoch's order stands in: the same
            batches with any number of workers, and wherever they begin.

    Raises:
        ValueError: while iterating, what a data set raises for a bad file, whichever process met it; with `skip`, one
            bad file more than that.
        ChildProcessError: a process that reads was killed.
    """

    def __init__(
        self,
        source: Dataset | Mixture,
        target: Dataset | None,
        batch_size: int,
        seed: int,
        workers: int,
        flip: bool,
        position: int = 0,
        device: torch.device = CPU,
        rank: int = 0,
        ranks: int = 1,
        skip: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
        if position < 0:
            raise ValueError(f"position: must not be negative, got {position}")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank: must be in [0, {ranks}), got {rank}")
        self.position = position
        """Batches handed out so far, those read ahead not counted: what a checkpoint has to keep."""
        self.skipped: dict[str, str] = {}
        """Bad files of the batches handed out, or just read, by their names, and what is wrong with them. What is in
        here counts: a resumed loader has to be given what the one before had."""
        self._batches = _Batches(source, target, batch_size, seed, flip, rank, ranks, skip)
        self._workers, self._device, self._skip = workers, device, skip

    def __iter__(self) -> Iterator[Batch]:
        read = read_ahead(self._batches, itertools.count(self.position), self._workers, self._device.type == "cuda")
        for batch in on_device(self._counted(read), self._device):
            self.position += 1
            yield batch

    def _counted(self, read: Iterator[tuple[Batch, dict[str, str]]]) -> Iterator[Batch]:
        """Without the bad files, which are named as they come.

        Raises:
            ValueError: they have become too many.
        """
        for batch, skipped in read:
            _take_up(skipped, self.skipped, self._skip, "the next one stands in for it")
            yield batch


def _take_up(new: dict[str, str], skipped: dict[str, str], skip: int, what: str) -> None:
    """Names bad files that were not met before, and counts them.

    Args:
        new: bad files and what is wrong with them.
        skipped: takes them up.
        skip: how many there may be.
        what: becomes of them.

    Raises:
        ValueError: they have become too many.
    """
    for name, reason in new.items():
        if name in skipped:
            continue
        if len(skipped) >= skip:  # more where a resumed run may have fewer than before
            before = f"more than {skip} bad files, with {', '.join(sorted(skipped))}"
            raise ValueError(f"{reason} ({f'skip_bad_files: {before}' if skip else GO_ON})")
        skipped[name] = reason
        # As an error, which each of several processes prints.
        log.error("bad file %d of up to %d, %s: %s", len(skipped), skip, what, reason)


class EvaluationLoader:
    """Batches in order: (images uint8 [B, 3, H, W], labels, a list of uint8 [H', W'] at their own sizes, names).

    Attributes:
        skipped: bad files so far, by the names of the items, and what is wrong with them.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        workers: int,
        items: Sequence[int],
        device: torch.device = CPU,
        skip: int | None = None,
    ):
        self._groups = _Groups(dataset, batch_size, items, skip is not None)
        self._workers, self._device, self._skip = workers, device, skip or 0
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor], list[str]]]:
        groups = read_ahead(self._groups, range(len(self)), self._workers, self._device.type == "cuda")
        for batch, skipped in groups:
            _take_up(skipped, self.skipped, self._skip, "left out")
            if batch is not None:
                yield batch


def evaluation_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    device: torch.device = CPU,
    rank: int = 0,
    ranks: int = 1,
    items: Sequence[int] | None = None,
    skip: int | None = None,
) -> EvaluationLoader:
    """A data set in order, each image once, or those of some places; the last batch may be smaller. Arguments and
    errors as `DomainLoader`'s, but that of bad files, as many as `skip` are left out. None: of files that none is to be
    left out of, whose error then does not speak of it.

    Batches stay on the host, in pinned memory where `device`, to which they are to be copied, is a GPU. Of several
    ranks, each gets a share of images that follow one another; the first image is rank 0's.
    """
    items = range(len(dataset)) if items is None else items
    first, last = (len(items) * r // ranks for r in (rank, rank + 1))
    return EvaluationLoader(dataset, batch_size, workers, items[first:last], device, skip)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device. To a GPU they are copied on a stream of their own, while the step before still computes.

    A batch on a GPU may be used until the next one is asked for, on the stream that is current by then: afterwards its
    memory is another batch's.
    """
    if device.type != "cuda":
        for batch in batches:
            yield Batch(*(x if x is None else x.to(device) for x in batch))
        return
    copies, used = torch.cuda.Stream(device), None
    kept: deque[Batch] = deque(maxlen=2)
    for batch in batches:
        compute = torch.cuda.current_stream(device)
        if used is not None:
            # The copy takes the memory of the batch before the last one, whose use `used` is the end of. Waiting for it
            # here, rather than recording streams with the allocator, bounds the memory to three batches.
            copies.wait_event(used)
        if len(kept) == kept.maxlen:
            kept.popleft()
        with torch.cuda.stream(copies):
            kept.append(Batch(*(x if x is None else x.to(device, non_blocking=True) for x in batch)))
        used = compute.record_event()
        compute.wait_stream(copies)
        yield kept[-1]


class _Batches:
    """Batch number p, read where it is asked for."""

    def __init__(
        self,
        source: Dataset | Mixture,
        target: Dataset | None,
        batch_size: int,
        seed: int,
        flip: bool,
        rank: int,
        ranks: int,
        skip: int,
    ):
        self.source, self.target, self.batch_size, self.seed, self.flip = source, target, batch_size, seed, flip
        self.rank, self.ranks, self.skip = rank, ranks, skip
        self.pinned = False
        sources = source.datasets if isinstance(source, Mixture) else (source,)
        self.cached = all(isinstance(x, CachedDataset | None) for x in (*sources, target))

    def __getitem__(self, p: int) -> tuple[Batch, dict[str, str]] | ValueError | OSError:
        """And the bad files for which others stand in."""
        skipped: dict[str, str] = {}
        try:
            images, labels = self._read("source", self.source, p, skipped)
            if self.target is None:
                return Batch(images, labels, None), skipped
            return Batch(images, labels, *self._read("target", self.target, p, skipped)), skipped
        except (ValueError, OSError) as error:
            return error

    def _read(
        self, domain: str, data: Dataset | Mixture, p: int, skipped: dict[str, str]
    ) -> tuple[Tensor, Tensor | None]:
        first = (p * self.ranks + self.rank) * self.batch_size
        images, labels, mirrored = [], [], []
        for k in range(first, first + self.batch_size):
            image, label, _ = sample(data, self.seed, domain, k, self.skip, skipped)
            images.append(image.numpy())
            labels.append(label.numpy())
            mirrored.append(self.flip and draw(self.seed, domain, "flip", k) % 2 == 1)
        labelled = labels[0].size > 0
        return _stack(images, mirrored, self.pinned), _stack(labels, mirrored, self.pinned) if labelled else None


class _Groups:
    """Group number i of consecutive items of a data set; with `skipping` without the bad ones, if any is left."""

    def __init__(self, dataset: Dataset, size: int, items: Sequence[int], skipping: bool):
        self.dataset, self.size, self.items, self.skipping = dataset, size, items, skipping
        self.pinned = False
        self.cached = isinstance(dataset, CachedDataset)

    def __len__(self) -> int:
        return -(-len(self.items) // self.size)

    def __getitem__(
        self, i: int
    ) -> tuple[tuple[Tensor, list[Tensor], list[str]] | None, dict[str, str]] | ValueError | OSError:
        """And the bad files."""
        group, skipped = [], {}
        for j in self.items[i * self.size : (i + 1) * self.size]:
            try:
                group.append(self.dataset[j])
            except (ValueError, OSError) as error:
                if not self.skipping:
                    return error
                skipped[self.dataset.names[j]] = str(error)
        if not group:
            return None, skipped
        try:
            images, labels, names = zip(*group, strict=True)
            images = _stack([image.numpy() for image in images], [False] * len(group), self.pinned)
            return (images, [label.pin_memory() if self.pinned else label for label in labels], list(names)), skipped
        except (ValueError, OSError) as error:
            return error


def _stack(items: Sequence[np.ndarray], mirrored: Sequence[bool], pinned: bool) -> Tensor:
    """Items [..., H, W] as one tensor, each copied once, on the way mirrored or not.

    Not by torch: it would wake all its threads for a copy of some kilobytes, and wait for them on a busy CPU.
    """
    shape = (len(items), *items[0].shape)
    if pinned:
        stacked = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    else:  # not torch.empty, which deterministic algorithms make fill its memory
        stacked = torch.from_numpy(np.empty(shape, np.uint8))
    for item, turned, place in zip(items, mirrored, stacked.numpy(), strict=True):
        if turned:
            import cv2  # here: only mirroring needs it

            cv2.flip(item.reshape(-1, shape[-1]), 1, place.reshape(-1, shape[-1]))
        else:
            place[...] = item
    return stacked
