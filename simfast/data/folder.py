"""A data set in a pair of folders, images/ and labels/ with the same names, whose ids the user may give."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from simfast.data.classes import IGNORE, NUM_CLASSES, TRAIN_IDS
from simfast.data.dataset import IMAGE_SUFFIXES, LABEL_SUFFIXES, SegmentationDataset, files_by_stem, read_label_map

log = logging.getLogger("simfast")


def open_pairs(
    images: Path,
    labels: Path | None,
    size: tuple[int, int],
    ids: Mapping[int, int] | None = None,
    resize_labels: bool = True,
    class_ids: tuple[int, ...] | None = None,
    same_size: bool = True,
    read_label: Callable[[Path], np.ndarray] | None = None,
) -> SegmentationDataset:
    """Images with the label maps of the same name (without suffix), in the order of names.

    Args:
        images: folder of pictures (.png .jpg .jpeg .bmp .webp).
        labels: folder of label maps (.png .bmp), or None where there are none or none may be used. Those of no image
            are passed over.
        size: width and height of what comes out, pixels.
        ids: raw id -> train id; None: labels hold train ids.
        resize_labels: False keeps labels at the size of their files, to be scored at.
        class_ids: train ids that can occur; None: those in `ids`, without 255.
        same_size: whether a label map must have its image's size.
        read_label: file -> train ids, where labels are not 8-bit pictures with one channel.

    Raises:
        ValueError: a missing or empty folder, two files of one name, a bad id map. Images without a label map are the
            data set's `problems`.
    """
    ids = dict(TRAIN_IDS if ids is None else ids)
    _check_ids(ids, "ids")
    if class_ids is None:
        class_ids = tuple(sorted(set(ids.values()) - {IGNORE}))
    pictures = files_by_stem(images, IMAGE_SUFFIXES, "an image")
    files, problems = None, ()
    if labels is not None:
        found = files_by_stem(labels, LABEL_SUFFIXES, "a label map")
        expected = {name: labels / f"{name}.png" for name in pictures}
        problems = tuple(
            f"{path}: must have a label map, got no {expected[name]} (or .bmp)"
            for name, path in pictures.items()
            if name not in found
        )
        files = [found.get(name, expected[name]) for name in pictures]
    return SegmentationDataset(
        list(pictures),
        list(pictures.values()),
        files,
        size,
        read_label or partial(read_label_map, ids=ids),
        class_ids,
        same_size,
        resize_labels,
        problems,
    )


def open_folder(
    root: Path,
    split: str,
    size: tuple[int, int],
    *,
    labelled: bool = True,
    resize_labels: bool = True,
    ids: Mapping[int, int] | None = None,
) -> SegmentationDataset:
    """A user's own data, ROOT/SPLIT/{images,labels}; for the split "train" also ROOT/{images,labels}.

    Raises:
        ValueError: no such split, or what `open_pairs` raises.
    """
    part = root / split
    if not part.is_dir():
        if split != "train":  # ROOT/images are to train on: never quietly the held-out part
            raise ValueError(f"{part}: must hold the split {split!r} as images/ and labels/, got nothing there")
        part = root
    return open_pairs(part / "images", part / "labels" if labelled else None, size, ids, resize_labels)


def names_folder(images: Path, labels: Path, images_replaced: bool) -> Path:
    """The folder that tells the names of a set: its images, or its labels where only other images are at hand."""
    return labels if images_replaced and not images.is_dir() else images


def warn_if_incomplete(dataset: SegmentationDataset, what: str, complete: int) -> SegmentationDataset:
    """The data set as it came, after a logged warning where it has another number of images than as published."""
    if len(dataset) != complete:
        log.warning("%s: found %d images, the complete set has %d", what, len(dataset), complete)
    return dataset


def read_ids(path: Path) -> dict[int, int]:
    """An id map {raw id: train id} from a YAML or JSON file.

    Raises:
        ValueError: the file cannot be read or holds something else; names the file.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: must be a readable YAML or JSON file, got {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: must map raw ids to train ids, got {type(content).__name__}")
    # JSON has no other keys than strings
    ids = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in content.items()}
    _check_ids(ids, path)
    return ids


def _check_ids(ids: Mapping, where: object) -> None:
    for raw, train in ids.items():
        if type(raw) is not int or not 0 <= raw <= 255:
            raise ValueError(f"{where}: raw ids must be whole numbers in 0-255, got {raw!r}")
        if type(train) is not int or train not in TRAIN_IDS:
            raise ValueError(f"{where}: train ids must be in 0-{NUM_CLASSES - 1}, or {IGNORE}, got {raw}: {train!r}")
