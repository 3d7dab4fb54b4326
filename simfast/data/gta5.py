"""GTA5 (Richter et al. 2016), "Playing for Data": 24,966 frames of a game with labels in Cityscapes ids."""

from pathlib import Path

from simfast.data.dataset import SegmentationDataset
from simfast.data.folder import names_folder, open_pairs, warn_if_incomplete
from simfast.data.labels import LabelCoding

NUM_IMAGES = 24_966
SIZE_TOLERANCE = 0.02


def open_gta5(
    root: Path,
    split: str,
    size: tuple[int, int],
    coding: LabelCoding,
    *,
    labelled: bool = True,
    resize_labels: bool = True,
    images_replaced: bool = False,
) -> SegmentationDataset:
    """All of GTA5, ROOT/{images,labels}/*.png; the labels are palette PNG of ids 0-34.

    Raises:
        ValueError: an unknown split, or what `open_pairs` raises.
    """
    if split != "train":
        raise ValueError(f"gta5: split must be train, got {split!r}")
    images, labels = root / "images", root / "labels"
    # Some labels of the release differ from their images by a few pixels; the released code resizes each by itself.
    dataset = open_pairs(
        names_folder(images, labels, images_replaced),
        labels if labelled else None,
        size,
        coding,
        resize_labels,
        size_tolerance=SIZE_TOLERANCE,
    )
    return warn_if_incomplete(dataset, f"{root}: gta5", NUM_IMAGES)
