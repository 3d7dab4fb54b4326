"""Writes the cache that `simfast.data.cache` reads."""

import errno
import hashlib
import io
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL

from simfast.data.cache import (
    file_problem,
    fingerprint,
    label_shapes,
    length_problem,
    part_name,
    read_item,
    require_same_files,
)
from simfast.data.cache_index import FORMAT, INDEX_FILE, Index, Shard, ShardFile, file_name, read_index, read_record
from simfast.data.dataset import SegmentationDataset, require_complete
from simfast.data.pictures import picture_size
from simfast.data.processes import spread
from simfast.runtime.files import replacing, write_text
from simfast.runtime.lock import locked

log = logging.getLogger("simfast")

SHARD_ITEMS = 64
"""Items in a shard: 170 MiB of images at 1280x720; enough shards for many processes, few enough files."""


def prepare(dataset: SegmentationDataset, cache: Path, workers: int, shard_items: int = SHARD_ITEMS) -> Path:
    """Writes a data set into a cache, from which `open_dataset(..., cache=...)` gives the same bytes.

    May be stopped at any time: the next call verifies finished shards and keeps them, and what is not finished is never
    read. Of a part that is there, damaged shards are written anew; where its index is damaged, all of them are.

    Args:
        dataset: what `open_dataset` gives without a cache and without replaced labels.
        cache: folder of prepared parts; made if missing.
        workers: processes that decode; 0 = this one.
        shard_items: items in a file.

    Returns:
        The folder of the part.

    Raises:
        ValueError: replaced labels, missing or bad files, a name that is not UTF-8, a finished part made from other
            files, another program that prepares this part.
        OSError: too little space, or what writing raises.
    """
    if dataset.description is None:
        raise ValueError("prepare: the data set must have its own labels or none, got replaced ones")
    require_complete(dataset)
    for text in (*map(os.path.abspath, dataset.read_from.values()), *dataset.names):  # which the index has to hold
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"cache: names of files and folders must be UTF-8, got {text!r}; rename it") from error
    part = Path(cache) / part_name(dataset.description)
    part.mkdir(parents=True, exist_ok=True)
    with locked(part, "cache"):
        return _prepare(dataset, part, workers, shard_items)


def _prepare(dataset: SegmentationDataset, part: Path, workers: int, shard_items: int) -> Path:
    index = _finished(dataset, part)
    if index is not None:
        shard_items = index.shard_items
    items = [range(first, min(first + shard_items, len(dataset))) for first in range(0, len(dataset), shard_items)]
    jobs = [
        (n, here, _kept(dataset, part, n, here, index.shards[n] if index else None)) for n, here in enumerate(items)
    ]
    missing = sum(len(here) for _, here, kept in jobs if kept is None)
    _require_space(dataset, part, missing)
    title = f"prepare {dataset.description}"
    try:
        shards = dict(spread(_shard, (dataset, part), jobs, workers, len(dataset), title))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        amount = _amount(_bytes(dataset, missing))
        came = f"{error.strerror} ({amount} were to be written in all; what is finished is kept)"
        raise OSError(error.errno, came, error.filename) from error
    made = Index(
        format=FORMAT,
        description=dataset.description,
        read_from={kind: os.path.abspath(folder) for kind, folder in dataset.read_from.items()},
        pillow=PIL.__version__,
        class_ids=list(dataset.class_ids),
        shard_items=shard_items,
        names=list(dataset.names),
        shards=[shards[number] for number in range(len(jobs))],
    )
    if index is None or (index.format, index.shards) != (made.format, made.shards):
        write_text(part / INDEX_FILE, made.model_dump_json() + "\n")
    for path in part.glob("shard-*.json"):
        path.unlink()
    return part


def _finished(dataset: SegmentationDataset, part: Path) -> Index | None:
    """What a finished part holds; None where there is none, or its index is damaged.

    Raises:
        ValueError: it is made from other files.
    """
    if not (part / INDEX_FILE).exists():
        return None
    try:
        index = read_index(part)
    except ValueError as error:
        log.warning("preparing anew: %s", error)
        return None
    require_same_files(part, index, dataset)
    return index


def _record(part: Path, number: int) -> Path:
    return part / f"shard-{number:05d}.json"


def _kept(dataset: SegmentationDataset, part: Path, number: int, items: range, earlier: Shard | None) -> Shard | None:
    """What is known of a shard that an earlier call finished; None where it has to be written."""
    shard = read_record(_record(part, number)) or earlier
    if shard is None or shard.items != len(items):
        return None
    made_from = _made_from(dataset, items)
    for kind, file in (("images", shard.images), ("labels", shard.labels)):
        if (file and file.made_from) != made_from[kind] or (file and file.file != file_name(kind, number)):
            return None
        if file and length_problem(part, file):
            return None
    return shard


def _made_from(dataset: SegmentationDataset, items: range) -> dict[str, str | None]:
    here = slice(items.start, items.stop)
    files = {"images": dataset.images, "labels": dataset.labels}
    return {kind: paths and fingerprint(dataset.names[here], paths[here]) for kind, paths in files.items()}


def _shard(shared: tuple[SegmentationDataset, Path], job: tuple[int, range, Shard | None], tick) -> tuple[int, Shard]:
    """What the index says of a shard, which is written where it is not there whole."""
    (dataset, part), (number, items, kept) = shared, job
    if kept is not None:
        problems = list(filter(None, (file_problem(part, file) for file in (kept.images, kept.labels) if file)))
        for problem in problems:
            log.warning("%s", problem)
        if not problems:
            for _ in items:
                tick()
            return number, _with_item_checksums(dataset, part, kept)
    return number, _write_shard(dataset, part, number, items, tick)


def _with_item_checksums(dataset: SegmentationDataset, part: Path, shard: Shard) -> Shard:
    """The same of a shard of format 1."""
    if shard.images.crc32 is not None:
        return shard
    width, height = dataset.size
    shapes: dict[str, Sequence[tuple[int, ...]]] = {"images": [(3, height, width)] * shard.items}
    if shard.labels is not None:
        shapes["labels"] = label_shapes(part, dataset.description, shard)
    files = {}
    for kind, of_kind in shapes.items():
        file = getattr(shard, kind)
        values = [zlib.crc32(read_item(part / file.file, file, of_kind, place)) for place in range(shard.items)]
        extra = {"crc32": values} | ({"shapes": of_kind} if kind == "labels" else {})
        files[kind] = file.model_copy(update=extra)
    return shard.model_copy(update=files)


def _write_shard(dataset: SegmentationDataset, part: Path, number: int, items: range, tick) -> Shard:
    _record(part, number).unlink(missing_ok=True)
    made_from, labels = _made_from(dataset, items), []

    def images() -> Iterable[np.ndarray]:
        for i in items:
            yield dataset.image(i).numpy()
            if dataset.labels is not None:
                labels.append(dataset.label(i).numpy())
            tick()

    width, height = dataset.size
    path = part / file_name("images", number)
    file, label_file = _write_array(path, (len(items), 3, height, width), images(), made_from["images"]), None
    if labels:
        shapes = [label.shape for label in labels]
        shape = (len(items), *shapes[0]) if len(set(shapes)) == 1 else (sum(label.size for label in labels),)
        label_file = _write_array(part / file_name("labels", number), shape, labels, made_from["labels"])
        label_file = label_file.model_copy(update={"shapes": shapes})
    shard = Shard(items=len(items), images=file, labels=label_file)
    write_text(_record(part, number), shard.model_dump_json() + "\n")
    return shard


def _write_array(path: Path, shape: tuple[int, ...], items: Iterable[np.ndarray], made_from: str) -> ShardFile:
    """An .npy file of this shape, of items written one after the other; no memory is needed but that of an item."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    # Of what was meant to be written, and not of what can be read again.
    digest, crc32 = hashlib.blake2b(head.getvalue(), digest_size=16), []
    with replacing(path) as file:
        file.write(head.getvalue())
        for item in items:
            pixels = np.ascontiguousarray(item)
            digest.update(pixels)
            crc32.append(zlib.crc32(pixels))
            file.write(pixels)
        size = file.tell()
    return ShardFile(file=path.name, bytes=size, checksum=digest.hexdigest(), made_from=made_from, crc32=crc32)


def _bytes(dataset: SegmentationDataset, items: int) -> int:
    """About how many so many items take."""
    width, height = dataset.size
    pixels = 3 * width * height
    if dataset.labels is not None:
        wide, high = dataset.size if dataset.resize_labels else picture_size(dataset.labels[0])
        pixels += wide * high
    return items * pixels


def _require_space(dataset: SegmentationDataset, part: Path, items: int) -> None:
    needed, free = _bytes(dataset, items), shutil.disk_usage(part).free
    if needed > free:
        there = f"the disk has {_amount(free)} free"
        raise OSError(f"{part}: needs {_amount(needed)} for {items} items, and {there}")


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
