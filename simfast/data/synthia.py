"""SYNTHIA-RAND-CITYSCAPES (Ros et al. 2016): 9,400 rendered pictures of streets."""

import logging
from functools import partial
from pathlib import Path

import numpy as np

from simfast.data.dataset import SegmentationDataset
from simfast.data.folder import names_folder, open_pairs, warn_if_incomplete
from simfast.data.labels import LabelCoding
from simfast.data.pictures import read_deep

NUM_IMAGES = 9_400
NATIVE = "GT/LABELS"
DECODED = ("parsed_LABELS", "synthia_mapped_to_cityscapes")
"""Folders in which labels lie as 8-bit pictures of one channel; they hold SYNTHIA's ids whatever their name says."""

log = logging.getLogger("simfast")


def open_synthia(
    root: Path,
    split: str,
    size: tuple[int, int],
    coding: LabelCoding,
    *,
    labelled: bool = True,
    resize_labels: bool = True,
    images_replaced: bool = False,
) -> SegmentationDataset:
    """All of SYNTHIA-RAND-CITYSCAPES: ROOT/RGB/*.png and labels in ROOT/GT/LABELS as released, or decoded.

    Raises:
        ValueError: an unknown split, no folder of labels, or what `open_pairs` raises.
    """
    if split != "train":
        raise ValueError(f"synthia: split must be train, got {split!r}")
    labels, reader = root / NATIVE, partial(read_native_label, coding=coding)
    if labelled:
        kind = next((kind for kind in (NATIVE, *DECODED) if (root / kind).is_dir()), None)
        if kind is None:
            raise ValueError(f"{root}: must hold the labels in {NATIVE}, {' or '.join(DECODED)}, got none of them")
        if kind != NATIVE:
            labels, reader = root / kind, None
        log.info("synthia: labels are read from %s", labels)
    dataset = open_pairs(
        names_folder(root / "RGB", labels, images_replaced),
        labels if labelled else None,
        size,
        coding,
        resize_labels,
        read_label=reader,
    )
    return warn_if_incomplete(dataset, f"{root}: synthia", NUM_IMAGES)


def read_native_label(path: Path, coding: LabelCoding) -> np.ndarray:
    """Train ids, uint8 [H, W], of a label as released: a 16-bit PNG, class in the first channel, instance in the next.

    Raises:
        ValueError: an unreadable file, another kind of picture, an id that the coding does not name.
    """
    pixels = read_deep(path)
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] != 3:
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        raise ValueError(
            f"{path}: a label of SYNTHIA must be a PNG of three 16-bit channels, as released, got {channels} of "
            f"{8 * pixels.itemsize} bits (converted by a program that cannot read it, it has lost its classes)"
        )
    return coding.remap(pixels[..., 0], path)
