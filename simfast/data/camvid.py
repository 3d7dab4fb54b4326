"""CamVid (Brostow et al. 2009) in the 480x360 edition of the SegNet tutorial: 367 / 101 / 233 photographs."""

from pathlib import Path

from simfast.data.classes import CAMVID_IDS
from simfast.data.dataset import SegmentationDataset
from simfast.data.folder import open_pairs

SPLITS = ("train", "val", "test")


def open_camvid(
    root: Path, split: str, size: tuple[int, int], *, labelled: bool = True, resize_labels: bool = True
) -> SegmentationDataset:
    """A part of CamVid, ROOT/SPLIT/{images,labels}, its ids 0-11 turned into train ids; 11 classes can occur.

    Raises:
        ValueError: an unknown split, or what `open_pairs` raises.
    """
    if split not in SPLITS:
        raise ValueError(f"camvid: split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = Path(root) / split
    return open_pairs(folder / "images", folder / "labels" if labelled else None, size, CAMVID_IDS, resize_labels)
