"""Cityscapes (Cordts et al. 2016): 2,975 / 500 / 1,525 photographs of streets, finely labelled."""

from pathlib import Path

from simfast.data.dataset import SegmentationDataset
from simfast.data.folder import warn_if_incomplete
from simfast.data.labels import LabelCoding

NUM_IMAGES = {"train": 2_975, "val": 500, "test": 1_525}
IMAGE_END, LABEL_END, TRAIN_ID_END = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def open_cityscapes(
    root: Path,
    split: str,
    size: tuple[int, int],
    coding: LabelCoding,
    *,
    labelled: bool = True,
    resize_labels: bool = True,
) -> SegmentationDataset:
    """A part of Cityscapes, ROOT/leftImg8bit/SPLIT/CITY/*.png and ROOT/gtFine/SPLIT/CITY/*_labelIds.png.

    Raises:
        ValueError: an unknown split, labels of the test split (they are not public), a missing folder, no image.
            Images without a label map are the data set's `problems`.
    """
    if split not in NUM_IMAGES:
        raise ValueError(f"cityscapes: split must be one of {', '.join(NUM_IMAGES)}, got {split!r}")
    if labelled and split == "test":
        raise ValueError("cityscapes: split must be train or val where labels are read (those of test are not public)")
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (images, labels) if labelled else (images,):
        if not folder.is_dir():
            raise ValueError(f"{folder}: must be a folder with one of each city, got nothing there")
    found = sorted(images.glob(f"*/*{IMAGE_END}"), key=lambda path: path.name)
    if not found:
        raise ValueError(f"{images}: must hold CITY/*{IMAGE_END}, got none")
    files, problems = None, ()
    if labelled:
        files = [labels / path.parent.name / path.name.replace(IMAGE_END, LABEL_END) for path in found]
        there = set(labels.glob("*/*.png"))
        problems = tuple(_missing(path, there) for path in files if path not in there)
    dataset = SegmentationDataset(
        [path.stem for path in found],
        found,
        files,
        size,
        coding,
        resize_labels=resize_labels,
        problems=problems,
    )
    return warn_if_incomplete(dataset, f"{images}: cityscapes {split}", NUM_IMAGES[split])


def _missing(path: Path, there: set[Path]) -> str:
    other = path.with_name(path.name.replace(LABEL_END, TRAIN_ID_END))
    came = f"{other.name} alone (labelIds are in gtFine_trainvaltest.zip)" if other in there else "nothing there"
    return f"{path}: must be the label map of its image, got {came}"
