"""Prepared data: resized images and train ids in plain .npy shards that are read, not decoded; `prepare` writes them.

CACHE/PART/index.json says what the shards hold, with a checksum of each shard and each item; a part is one
`Description`. Shards are not mapped into memory: of a file that is cut short under a mapping, the process dies.
"""

import hashlib
import logging
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simfast.config.classes import Classes
from simfast.data.cache_index import FORMAT, INDEX_FILE, Index, Shard, ShardFile, part_name, read_index
from simfast.data.dataset import Description, SegmentationDataset
from simfast.data.labels import LabelCoding
from simfast.data.listing import nfc
from simfast.data.processes import spread
from simfast.runtime.files import checksum

log = logging.getLogger("simfast")

REMEDY = "run `simfast prepare`, which writes such files anew"


class CachedDataset:
    """What a prepared part holds; items, `names`, `class_ids` and `size` as `SegmentationDataset`'s, byte for byte.

    An item raises ValueError where its shard cannot be read or does not hold what was prepared; it names the file.

    Attributes:
        part: the folder of the part.
        index: its index.json.
        problems, passed_over: as `SegmentationDataset`'s.
        made_from: the files of the images, where they are at hand.
    """

    def __init__(self, part: Path, index: Index, labelled: bool, coding: LabelCoding):
        """
        Args:
            part: folder that `prepare` wrote.
            index: what `read_index` gives of it.
            labelled: False leaves the part's labels unread.
            coding: what label files hold, of which the class list counts here.

        Raises:
            ValueError: a shard that is missing or has another length than written; names the file.
        """
        self.part, self.index, self.coding = part, index, coding
        self.names: list[str] = index.names
        self.class_ids = tuple(index.class_ids)
        self.size = index.description.size
        self.problems: tuple[str, ...] = ()
        self.passed_over: tuple[str, ...] = ()
        self.made_from: Sequence[Path] = ()
        self._labelled, self._replaced = labelled, None
        for shard in index.shards:
            for file in filter(None, (shard.images, shard.labels)):
                if problem := length_problem(part, file):
                    raise ValueError(problem)
        width, height = self.size
        self._images = [[(3, height, width)] * shard.items for shard in index.shards]
        self._labels = [label_shapes(part, index.description, shard) for shard in index.shards] if labelled else []

    @property
    def classes(self) -> Classes:
        """The class list."""
        return self.coding.classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, str]:
        return self.image(i), self.label(i), self.names[i]

    def image(self, i: int) -> Tensor:
        """The image of item i alone, uint8 [3, H, W], in memory of its own."""
        number, place = divmod(i, self.index.shard_items)
        return self._read(self.index.shards[number].images, self._images[number], place, i)

    def label(self, i: int) -> Tensor:
        """The label map of item i alone, uint8 [H, W], in memory of its own; empty [0] where none are read."""
        if self._replaced is not None:
            return self._replaced.label(i)
        if not self._labelled:
            return torch.empty(0, dtype=torch.uint8)
        number, place = divmod(i, self.index.shard_items)
        return self._read(self.index.shards[number].labels, self._labels[number], place, i)

    def _read(self, file: ShardFile, shapes: Sequence[tuple[int, ...]], place: int, i: int) -> Tensor:
        path = self.part / file.file
        try:
            pixels = read_item(path, file, shapes, place)
        except OSError as error:
            raise ValueError(f"{path}: must be a readable shard, got {error}; {REMEDY}") from error
        if file.crc32 is not None and zlib.crc32(pixels) != file.crc32[place]:
            raise ValueError(f"{path}: must be as prepared, got another checksum of {self.names[i]}; {REMEDY}")
        return torch.from_numpy(pixels)

    @property
    def read_from(self) -> dict[str, str]:
        """The folders that images and labels come from."""
        labels = {"labels": str(self.part)} if self._labelled else {}
        return {"images": str(self.part)} | (self._replaced.read_from if self._replaced else labels)

    def with_labels(self, folder: Path, resize_labels: bool = True) -> "CachedDataset":
        """The same with label maps from files; arguments and errors as `SegmentationDataset.with_labels`."""
        unlabelled = SegmentationDataset(self.names, (), None, self.size, self.coding)
        other = CachedDataset(self.part, self.index, False, self.coding)
        other._replaced = unlabelled.with_labels(folder, resize_labels)
        other.problems, other.passed_over = other._replaced.problems, self.passed_over
        other.made_from = self.made_from
        return other


def open_cached(
    cache: Path, description: Description, files: SegmentationDataset | None, coding: LabelCoding
) -> CachedDataset:
    """A prepared part.

    Args:
        cache: folder of parts.
        description: which part; one prepared with labels also serves where they may not be read.
        files: the data set in its files, which the part must be made from; None where they are not at hand.
        coding: what its label files hold.

    Raises:
        ValueError: no such part, an unfinished one, or one made from other files.
    """
    kinds = [description]
    if not description.labelled:
        kinds += [replace(description, labelled=True, resize_labels=resize) for resize in (True, False)]
    part = next((part for kind in kinds if (part := cache / part_name(kind)) and (part / INDEX_FILE).is_file()), None)
    if part is None:
        there = ", ".join(path.parent.name for path in sorted(cache.glob(f"*/{INDEX_FILE}"))) or "nothing"
        unfinished = " unfinished and" if (cache / part_name(description)).is_dir() else ""
        raise ValueError(
            f"{cache / part_name(description)}: must be a prepared part, got it{unfinished} not among what is there "
            f"({there}); run `simfast prepare` with the same settings, or read the files with --cache None"
        )
    index = read_index(part)
    if files is not None:
        require_same_files(part, index, files)
    if index.format < FORMAT:
        rule = "prepared by an older version, so that shards that change pass unseen; `simfast prepare` adds checksums"
        log.warning("%s: %s", part, rule)
    dataset = CachedDataset(part, index, description.labelled, coding)
    if files is not None:
        dataset.passed_over, dataset.made_from = files.passed_over, files.images
    return dataset


def length_problem(part: Path, file: ShardFile) -> str | None:
    """A sentence where a file of a shard is not there, or has another length than written."""
    path = part / file.file
    if path.is_file() and path.stat().st_size == file.bytes:
        return None
    return f"{path}: must have {file.bytes} bytes, as prepared; {REMEDY}"


def label_shapes(part: Path, description: Description, shard: Shard) -> list[tuple[int, int]]:
    """Height and width of each label map of a shard, which has some.

    Raises:
        ValueError: the file is no array, or has no room for them; names it.
    """
    width, height = description.size
    shapes = shard.labels.shapes
    if shapes is None:
        shapes = [(height, width)] * shard.items
        if not description.resize_labels:  # only the file itself says it, in format 1
            path = part / shard.labels.file
            try:
                shapes = [np.load(path, mmap_mode="r", allow_pickle=False).shape[1:]] * shard.items
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(f"{path}: must be a shard, got {error}; {REMEDY}") from error
    return shapes


def read_item(path: Path, file: ShardFile, shapes: Sequence[tuple[int, ...]], place: int) -> np.ndarray:
    """An item of a shard, uint8 of its shape; not verified.

    Args:
        path: of the file.
        file: what the index says of it.
        shapes: of all its items.
        place: which of them.

    Raises:
        OSError: it cannot be read, or ends before.
    """
    pixels = np.empty(shapes[place], np.uint8)
    left, at = memoryview(pixels).cast("B"), file.bytes - sum(map(math.prod, shapes[place:]))
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while left:
            count = os.preadv(number, [left], at)
            if count == 0:
                raise OSError(f"an end after {at} of {file.bytes} bytes")
            left, at = left[count:], at + count
    finally:
        os.close(number)
    return pixels


def fingerprint(names: Sequence[str], files: Sequence[Path]) -> str:
    """A hash of names and file lengths: enough to tell that files were exchanged, without reading them.

    Raises:
        ValueError: a missing file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, path in zip(names, files, strict=True):
        try:
            digest.update(f"{name}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise ValueError(f"{path}: must be a readable file, got {error}") from error
    return digest.hexdigest()


def require_same_files(part: Path, index: Index, files: SegmentationDataset) -> None:
    """Lengths tell little of files that are not compressed. So it logs a warning where one is newer than what was made
    of it, and where those that it was made of are another folder's, which is there.

    Raises:
        ValueError: the part was made from files of other names or lengths; names the first.
    """
    where, remedy = files.read_from["images"], f"delete {part} and run `simfast prepare` again, or use another cache"
    prepared = index.names  # as older versions wrote them, composed in any way
    if [nfc(name) for name in files.names] != [nfc(name) for name in prepared]:
        differing = sorted({nfc(name) for name in prepared} ^ {nfc(name) for name in files.names})
        came = f"only in one of them: {differing[0]} ..." if differing else "in another order"
        raise ValueError(
            f"{part}: must be made from the files in {where}, got {len(prepared)} names prepared and "
            f"{len(files)} there ({came}); {remedy}"
        )
    for kind in sorted(files.read_from.keys() & index.read_from.keys()):
        before, now = index.read_from[kind], os.path.abspath(files.read_from[kind])
        if os.path.exists(before) and not os.path.samefile(before, now):  # else they have moved
            text = (
                "%s: was made from the %s in %s, which is there, and is read for those in %s; if these are others, %s"
            )
            log.warning(text, part, kind, before, now, remedy)
            break
    newer: list[Path] = []
    for number, shard in enumerate(index.shards):
        first = number * index.shard_items
        for kind, paths, file in (("images", files.images, shard.images), ("labels", files.labels, shard.labels)):
            if paths is None or file is None:
                continue
            here = slice(first, first + index.shard_items)
            if fingerprint(prepared[here], paths[here]) != file.made_from:
                raise ValueError(
                    f"{part}: must be made from the files in {files.read_from[kind]}, got other lengths of the {kind} "
                    f"from {files.names[first]} on; {remedy}"
                )
            if (written := part / file.file).exists():
                time = written.stat().st_mtime_ns
                newer += [path for path in paths[here] if path.stat().st_mtime_ns > time]
    if newer:  # a copy is, too
        text = "%s: is older than %d of the files it was made from, such as %s; if one of them has changed, %s"
        log.warning(text, part, len(newer), newer[0], remedy)


def verify(part: Path, workers: int = 0) -> list[str]:
    """Reads every shard of a part again; returns a sentence for each that is missing or not as written.

    Raises:
        ValueError: no readable index.
    """
    index = read_index(part)
    found = spread(_verify_shard, part, index.shards, workers, len(index.shards), f"verify {part.name}", "shard")
    return sorted(problem for problems in found for problem in problems)


def _verify_shard(part: Path, shard: Shard, tick) -> list[str]:
    problems = [file_problem(part, file) for file in (shard.images, shard.labels) if file]
    tick()
    return [problem for problem in problems if problem]


def file_problem(part: Path, file: ShardFile) -> str | None:
    """A sentence where a file of a shard is not, byte for byte, what was written."""
    path = part / file.file
    try:
        with path.open("rb") as content:
            if checksum(content) == file.checksum:
                return None
    except FileNotFoundError:
        return f"{path}: must be there, as prepared; {REMEDY}"
    except OSError as error:
        return f"{path}: must be readable, got {error}; {REMEDY}"
    return f"{path}: its checksum is not the prepared one; {REMEDY}"
