"""Pictures and label maps in files: what every data set here comes down to."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simfast.config.classes import IGNORE, Classes
from simfast.data.label_pixels import LabelPixels
from simfast.data.labels import LabelCoding
from simfast.data.listing import files_by_name, nfc
from simfast.data.pictures import IMAGE_SUFFIXES, LABEL_SUFFIXES, is_turned, picture_size, read_image


@dataclass(frozen=True)
class Description:
    """Which data it is, in words that hold on another machine too: no path, and what decides the bytes of an item.

    Attributes:
        data_set, split, size, labelled, resize_labels: as in `open_dataset`.
        folder: name of the root folder, for a data set that has no other name.
        images: name of the folder of replacement images; None: the set's own images.
        ids: sorted (id in label files, train id), where the user gives them.
        classes: title and hash of the class list that labels are read by; None: cityscapes, or none are read.
        label_files: where the user says the label maps are; None: beside the images.
        image_files: name of the folder of images that stand for root and split, and of the one that it lies in.
    """

    data_set: str
    split: str
    size: tuple[int, int]
    labelled: bool
    resize_labels: bool
    folder: str | None = None
    images: str | None = None
    ids: tuple[tuple[int, int], ...] | None = None
    classes: str | None = None
    label_files: str | None = None
    image_files: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what came later and says nothing is left out, so that older parts keep their names."""
        later = ("classes", "label_files", "image_files")
        return {key: value for key, value in asdict(self).items() if key not in later or value is not None}

    def __str__(self) -> str:
        return "-".join(re.sub(r"[^A-Za-z0-9]+", "_", word) for word in self._words())

    def _words(self) -> list[str]:
        words = [self.data_set, self.folder, self.image_files, self.split, "{}x{}".format(*self.size)]
        words += [self.images, self.classes]
        kind = "unlabelled" if not self.labelled else None if self.resize_labels else "full labels"
        return [word for word in (*words, kind) if word]


@dataclass(frozen=True, eq=False, repr=False)  # they are long
class SegmentationDataset:
    """Images with label maps, in order; item i is (image, label, name).

    image: uint8 [3, H, W], RGB, resized bicubically (Pillow's, which smooths when it shrinks).
    label: uint8 [H, W] of train ids, 255 = don't care, resized to the nearest; or at the file's own size;
        or empty [0] without labels.
    name: str.

    An item raises ValueError for an unreadable picture, a label of another size than its image, or an unknown id; it
    names the file.

    Attributes:
        names: of the items: the image files' names without suffix, and with the sub-folders that they lie in.
        images: files of the images.
        labels: files of the label maps; None where there are none or none may be used.
        size: width and height of what comes out, pixels.
        coding: what the label maps hold.
        read_label: file -> uint8 [H, W] of train ids at the file's size; None: `coding.read`.
        size_tolerance: share of a side by which a label map may differ from its upright image; None: it may be of any
            size.
        resize_labels: False keeps labels at the size of their files, to be scored at.
        problems: what is missing, a sentence a file.
        description: what the data are; None once the labels have been replaced.
        passed_over: what lay in the folders and is not read, a sentence a reason, with the number and an example.
    """

    names: Sequence[str]
    images: Sequence[Path]
    labels: Sequence[Path] | None
    size: tuple[int, int]
    coding: LabelCoding
    read_label: Callable[[Path], np.ndarray] | None = None
    size_tolerance: float | None = 0.0
    resize_labels: bool = True
    problems: tuple[str, ...] = ()
    description: Description | None = None
    passed_over: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, str]:
        return self.image(i), self.label(i), self.names[i]

    def image(self, i: int) -> Tensor:
        """The image of item i alone."""
        picture = read_image(self.images[i]).resize(self.size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)))

    def label(self, i: int) -> Tensor:
        """The label map of item i alone."""
        if self.labels is None:
            return torch.empty(0, dtype=torch.uint8)
        path = self.labels[i]
        # All of it is read before it is resized, which may lose the id that is wrong.
        return self._fitted((self.read_label or self.coding.read)(path), i)

    def label_of(self, i: int, pixels: LabelPixels) -> Tensor:
        """`label` of what its file holds, where that has been read."""
        return self._fitted(self.coding.train_ids(pixels, self.labels[i]), i)

    def _fitted(self, label: np.ndarray, i: int) -> Tensor:
        if self.size_tolerance is not None:
            _require_size(label.shape[::-1], self.labels[i], self.images[i], self.size_tolerance)
        if self.resize_labels:
            label = np.array(Image.fromarray(label).resize(self.size, Image.Resampling.NEAREST))
        return torch.from_numpy(label)

    @property
    def classes(self) -> Classes:
        """The class list."""
        return self.coding.classes

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Train ids that can occur, ascending."""
        return self.coding.class_ids

    @property
    def read_from(self) -> dict[str, str]:
        """The folders that images and labels lie in."""
        files = {"images": self.images, "labels": self.labels}
        return {kind: os.path.commonpath([path.parent for path in paths]) for kind, paths in files.items() if paths}

    def with_images(self, folder: Path) -> "SegmentationDataset":
        """The same with other images of the same names, of any suffix and size (transferred source images).

        Raises:
            ValueError: a missing or empty folder, two images of one name. Names without an image are `problems`.
        """
        images, absent = _of_names(self.names, folder, IMAGE_SUFFIXES, "an image")
        problems = (*self.problems, *absent)
        return replace(self, images=images, size_tolerance=None, problems=problems)

    def with_labels(self, folder: Path, resize_labels: bool = True) -> "SegmentationDataset":
        """The same with 8-bit label maps of train ids under the images' names, of any size (pseudo labels).

        Raises:
            ValueError: a missing or empty folder, two label maps of one name. Names without one are `problems`.
        """
        labels, absent = _of_names(self.names, folder, LABEL_SUFFIXES, "a label map")
        problems = (*self.problems, *absent)
        train_ids = {i: i for i in (*range(len(self.classes)), IGNORE)}
        coding = LabelCoding(train_ids, {}, self.classes, published=True, pseudo=True, present=self.class_ids)
        return replace(
            self,
            labels=labels,
            coding=coding,
            read_label=None,
            size_tolerance=None,
            resize_labels=resize_labels,
            problems=problems,
            description=None,
        )


def require_complete(dataset: SegmentationDataset) -> SegmentationDataset:
    """The data set as it came.

    Raises:
        ValueError: files are missing; names the first and gives their number.
    """
    if dataset.problems:
        more = f" (missing in all: {len(dataset.problems)})" if len(dataset.problems) > 1 else ""
        raise ValueError(dataset.problems[0] + more)
    return dataset


def _require_size(size: tuple[int, int], path: Path, image: Path, tolerance: float) -> None:
    """
    Raises:
        ValueError: a label map of another size than its image, or turned; names both sizes.
    """
    wanted = picture_size(image)
    turned = size != wanted and size == wanted[::-1]
    if turned or any(abs(a - b) > tolerance * b for a, b in zip(size, wanted, strict=True)):
        but = f" (within {100 * tolerance:g} % a side)" if tolerance else ""
        why = ""
        if turned:
            stored = "its EXIF tag turns the image, and the label map must be turned as the image is seen"
            why = f"; {stored if is_turned(image) else 'it is turned by 90 degrees'}"
        raise ValueError(
            f"{path}: a label map must have its image's size {wanted[0]}x{wanted[1]}{but}, got {size[0]}x{size[1]}{why}"
        )


def _of_names(
    names: Sequence[str], folder: Path, suffixes: Sequence[str], what: str
) -> tuple[list[Path], tuple[str, ...]]:
    """A folder's file for each name, and a sentence for each that it lacks."""
    found = files_by_name(folder, suffixes, what)
    files = [found.get(nfc(name)) for name in names]
    absent = tuple(
        f"{folder}: must hold {what} for each of {len(names)} names, got none for {name}"
        for name, file in zip(names, files, strict=True)
        if file is None
    )
    return [folder / f"{name}.png" if file is None else file for name, file in zip(names, files, strict=True)], absent
