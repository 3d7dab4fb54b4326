"""Writes the cache that `simfast.data.cache` reads."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from simfast.data.cache import FORMAT, checksum, fingerprint, part_name, read_index, require_same_files
from simfast.data.dataset import SegmentationDataset, require_complete
from simfast.data.pictures import picture_size
from simfast.data.processes import spread

SHARD_ITEMS = 64
"""Items in a shard: 170 MiB of images at 1280x720; enough shards for many processes, few enough files."""


def prepare(dataset: SegmentationDataset, cache: Path, workers: int, shard_items: int = SHARD_ITEMS) -> Path:
    """Writes a data set into a cache, from which `open_dataset(..., cache=...)` gives the same bytes.

    May be stopped at any time: finished shards are kept by the next call, and what is not finished is never read.

    Args:
        dataset: what `open_dataset` gives without a cache and without replaced labels.
        cache: folder of prepared parts; made if missing.
        workers: processes that decode; 0 = this one.
        shard_items: items in a file.

    Returns:
        The folder of the part.

    Raises:
        ValueError: replaced labels, missing or bad files, a finished part made from other files.
        OSError: too little space, or what writing raises.
    """
    if dataset.description is None:
        raise ValueError("prepare: the data set must have its own labels or none, got replaced ones")
    require_complete(dataset)
    part = Path(cache) / part_name(dataset.description)
    finished = (part / "index.json").is_file()
    if finished:
        index = read_index(part)
        require_same_files(part, index, dataset)
        shard_items = index["shard_items"]
    part.mkdir(parents=True, exist_ok=True)
    jobs = [
        (number, range(first, min(first + shard_items, len(dataset))))
        for number, first in enumerate(range(0, len(dataset), shard_items))
    ]
    earlier = dict(enumerate(index["shards"])) if finished else {}
    shards = {n: shard for n, items in jobs if (shard := _kept(dataset, part, n, items, earlier.get(n)))}
    missing = [(number, items) for number, items in jobs if number not in shards]
    if finished and not missing:
        return part
    total = sum(len(items) for _, items in missing)
    _require_space(dataset, part, total)
    written = spread(_write_shard, (dataset, part), missing, workers, total, f"prepare {dataset.description}")
    for number, shard in written:
        shards[number] = shard
    index = {
        "format": FORMAT,
        "description": dataset.description.to_dict(),
        "read_from": {kind: os.path.abspath(folder) for kind, folder in dataset.read_from.items()},
        "pillow": PIL.__version__,
        "class_ids": list(dataset.class_ids),
        "shard_items": shard_items,
        "names": list(dataset.names),
        "shards": [shards[number] for number, _ in jobs],
    }
    _write_json(part / "index.json", index)
    for path in part.glob("shard-*.json"):
        path.unlink()
    return part


def _record(part: Path, number: int) -> Path:
    return part / f"shard-{number:05d}.json"


def _kept(dataset: SegmentationDataset, part: Path, number: int, items: range, earlier: dict | None) -> dict | None:
    """What is known of a shard that an earlier call finished; None where it has to be written."""
    path = _record(part, number)
    shard = json.loads(path.read_text()) if path.is_file() else earlier
    if shard is None or shard["items"] != len(items):
        return None
    made_from = _made_from(dataset, items)
    for kind in ("images", "labels"):
        file = shard[kind]
        if (file and file["made_from"]) != made_from[kind]:
            return None
        if file and not ((part / file["file"]).is_file() and (part / file["file"]).stat().st_size == file["bytes"]):
            return None
    return shard


def _made_from(dataset: SegmentationDataset, items: range) -> dict[str, str | None]:
    here = slice(items.start, items.stop)
    files = {"images": dataset.images, "labels": dataset.labels}
    return {kind: paths and fingerprint(dataset.names[here], paths[here]) for kind, paths in files.items()}


def _write_shard(shared: tuple[SegmentationDataset, Path], job: tuple[int, range], tick) -> tuple[int, dict[str, Any]]:
    (dataset, part), (number, items) = shared, job
    _record(part, number).unlink(missing_ok=True)
    made_from = _made_from(dataset, items)
    width, height = dataset.size
    path = part / f"images-{number:05d}.npy"
    # Mapped, so that a process does not need the memory of a whole shard.
    images = np.lib.format.open_memmap(_unfinished(path), "w+", np.uint8, (len(items), 3, height, width))
    labels = []
    for place, i in enumerate(items):
        images[place] = dataset.image(i).numpy()
        if dataset.labels is not None:
            labels.append(dataset.label(i).numpy())
        tick()
    images.flush()
    del images
    shard = {"items": len(items), "images": _finish(path) | {"made_from": made_from["images"]}, "labels": None}
    if labels:
        path = part / f"labels-{number:05d}.npy"
        shapes = [label.shape for label in labels]
        even = len(set(shapes)) == 1
        with open(_unfinished(path), "wb") as file:
            np.save(file, np.stack(labels) if even else np.concatenate([label.ravel() for label in labels]))
        extra = {"made_from": made_from["labels"], "shapes": None if even else shapes}
        shard["labels"] = _finish(path) | extra
    _write_json(_record(part, number), shard)
    return number, shard


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _finish(path: Path) -> dict[str, Any]:
    """Gives a whole file its name; returns what the index says of it."""
    temporary = _unfinished(path)
    entry = {"file": path.name, "bytes": temporary.stat().st_size, "checksum": checksum(temporary)}
    os.replace(temporary, path)
    return entry


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _unfinished(path).write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(_unfinished(path), path)


def _require_space(dataset: SegmentationDataset, part: Path, items: int) -> None:
    width, height = dataset.size
    pixels = 3 * width * height
    if dataset.labels is not None:
        wide, high = dataset.size if dataset.resize_labels else picture_size(dataset.labels[0])
        pixels += wide * high
    free = shutil.disk_usage(part).free
    if items * pixels > free:
        raise OSError(
            f"{part}: needs {items * pixels / 1e9:.1f} GB for {items} items, and the disk has {free / 1e9:.1f} GB free"
        )
