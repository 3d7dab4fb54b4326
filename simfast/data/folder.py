"""A data set in a pair of folders, images/ and labels/ with the same names,."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from simfast.data.dataset import IMAGE_SUFFIXES, LABEL_SUFFIXES, SegmentationDataset, files_by_stem
from simfast.data.labels import LabelCoding

log = logging.getLogger("simfast")


def open_pairs(
    images: Path,
    labels: Path | None,
    size: tuple[int, int],
    coding: LabelCoding,
    resize_labels: bool = True,
    size_tolerance: float | None = 0.0,
    read_label: Callable[[Path], np.ndarray] | None = None,
) -> SegmentationDataset:
    """Images with the label maps of the same name (without suffix), in the order of names.

    Args:
        images: folder of pictures (.png .jpg .jpeg .bmp .webp .tif .tiff .npy).
        labels: folder of label maps (.png .bmp .tif .tiff .npy), or None where there are none or none may be used.
            Those of no image are passed over.
        size: width and height of what comes out, pixels.
        coding: what the label maps hold.
        resize_labels: False keeps labels at the size of their files, to be scored at.
        size_tolerance: as `SegmentationDataset`'s.
        read_label: file -> train ids, in place of `coding.read`.

    Raises:
        ValueError: a missing or empty folder, two files of one name. Images without a label map are the
            data set's `problems`.
    """
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
        coding,
        read_label,
        size_tolerance,
        resize_labels,
        problems,
    )


def open_folder(
    root: Path,
    split: str,
    size: tuple[int, int],
    coding: LabelCoding,
    *,
    labelled: bool = True,
    resize_labels: bool = True,
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
    return open_pairs(part / "images", part / "labels" if labelled else None, size, coding, resize_labels)


def names_folder(images: Path, labels: Path, images_replaced: bool) -> Path:
    """The folder that tells the names of a set: its images, or its labels where only other images are at hand."""
    return labels if images_replaced and not images.is_dir() else images


def warn_if_incomplete(dataset: SegmentationDataset, what: str, complete: int) -> SegmentationDataset:
    """The data set as it came, after a logged warning where it has another number of images than as published."""
    if len(dataset) != complete:
        log.warning("%s: found %d images, the complete set has %d", what, len(dataset), complete)
    return dataset
