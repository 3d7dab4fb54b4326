"""CamVid (Brostow et al. 2009) in the 480x360 edition of the SegNet tutorial: 367 / 101 / 233 photographs."""

from pathlib import Path

from simfast.data.dataset import SegmentationDataset
from simfast.data.folder import open_pairs
from simfast.data.labels import LabelCoding

SPLITS = ("train", "val", "test")


def open_camvid(
    root: Path,
    split: str,
    size: tuple[int, int],
    coding: LabelCoding,
    *,
    labelled: bool = True,
    resize_labels: bool = True,
) -> SegmentationDataset:
    """A part of CamVid, ROOT/SPLIT/{images,labels}, whose ids are 0-11.

    Raises:
        ValueError: an unknown split, or what `open_pairs` raises.
    """
    if split not in SPLITS:
        raise ValueError(f"camvid: split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = Path(root) / split
    return open_pairs(folder / "images", folder / "labels" if labelled else None, size, coding, resize_labels)
