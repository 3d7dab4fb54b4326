"""The embedded data set: rendered streets in two looks, with exact labels (tools/render_streets.py draws them)."""

from pathlib import Path

from simfast.data.dataset import SegmentationDataset
from simfast.data.folder import open_pairs
from simfast.data.labels import LabelCoding

SPLITS = {"source": "source", "train": "target_train", "test": "target_test"}


def open_streets(
    split: str, size: tuple[int, int], coding: LabelCoding, *, labelled: bool = True, resize_labels: bool = True
) -> SegmentationDataset:
    """A part of the embedded pictures, 320x240 in the files: 240 source, 120 train and 60 test images.

    Args:
        split: "source", the sunny game look; "train" or "test", the camera look.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"streets: split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = Path(__file__).parent / SPLITS[split]
    return open_pairs(folder / "images", folder / "labels" if labelled else None, size, coding, resize_labels)
