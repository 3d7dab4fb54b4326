"""What one item of a data set holds, in a few numbers: all that `suspicions` goes by."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import cv2
import numpy as np

from simfast.config.classes import RGB
from simfast.data.cache import CachedDataset
from simfast.data.dataset import SegmentationDataset
from simfast.data.label_pixels import LabelPixels, read_label_pixels
from simfast.data.labels import LabelCoding
from simfast.data.order import Dataset
from simfast.data.pictures import picture_size

T = TypeVar("T")
_NEAR = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Inspection:
    """One item, in plain numbers. What could not be read, or is not at hand in a cache, is empty.

    Attributes:
        number: of the item.
        problems: what kept it from being read.
        constant: whether the image has one colour all over.
        pixels: train id -> pixels, of the label as it is trained on or scored at.
        heights: train id of road and sky -> sum over their pixels of how low they lie, 0 (top) to 1.
        ids: id in the label file -> pixels there.
        border: pixels of the label file with another id among their eight neighbours.
        between: id -> those with both a lower and a higher one there.
        palette: id -> its colour in the file's palette.
        sizes: width and height of the image file, and of the label file, where they may differ.
    """

    number: int
    problems: tuple[str, ...] = ()
    constant: bool = False
    pixels: Mapping[int, int] = field(default_factory=dict)
    heights: Mapping[int, float] = field(default_factory=dict)
    ids: Mapping[int, int] = field(default_factory=dict)
    border: int = 0
    between: Mapping[int, int] = field(default_factory=dict)
    palette: Mapping[int, RGB] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None

    def without(self, files: Collection[str]) -> "Inspection":
        """The same but for problems of these files."""
        return replace(self, problems=tuple(one for one in self.problems if one.partition(": ")[0] not in files))


def inspect(dataset: Dataset, i: int, image: bool = True, label: bool = True) -> Inspection:
    """Item i, read as training reads it.

    Args:
        dataset: of any kind; from a cache come only the image's and the label's own pixels.
        i: number of the item.
        image, label: False leaves it unread.
    """
    problems: list[str] = []
    told: dict[str, Any] = {}
    if image and (pixels := _read(dataset, problems, dataset.image, i)) is not None:
        first = pixels[:, :1, :1]
        told["constant"] = bool((pixels[:, 0] == first[:, 0]).all() and (pixels == first).all())
    if not label:
        return Inspection(i, tuple(problems), **told)
    # Native labels of SYNTHIA have a reader of their own: nobody's tools write such.
    if isinstance(dataset, CachedDataset) or dataset.labels is None or dataset.read_label is not None:
        content = _read(dataset, problems, dataset.label, i)
    else:
        raw, content = _read(dataset, problems, read_label_pixels, dataset.labels[i]), None
        if raw is not None:
            content = _read(dataset, problems, dataset.label_of, i, raw)
            told |= _of_file(raw, dataset, i)
    if content is not None and content.numel():
        ends = [train for train, name in enumerate(dataset.classes.names) if name in ("road", "sky")]
        content = content.numpy()
        told |= {"pixels": _counts(content), "heights": {train: _height(content == train) for train in ends}}
    return Inspection(i, tuple(dict.fromkeys(problems)), **told)


def _of_file(pixels: LabelPixels, dataset: SegmentationDataset, i: int) -> dict[str, Any]:
    """What the label file itself holds."""
    told: dict[str, Any] = {}
    if dataset.size_tolerance is None and (size := _read(dataset, [], picture_size, dataset.images[i])):
        told["sizes"] = (size, pixels.values.shape[::-1])
    ids = _ids(pixels, dataset.coding)
    if ids is None:
        return told
    counts, palette = _counts(ids), pixels.palette or ()
    paints = {raw: palette[raw] for raw in counts if 0 <= raw < len(palette)}
    return told | {"ids": counts, "palette": paints, **_seams(ids)}


def _ids(pixels: LabelPixels, coding: LabelCoding) -> np.ndarray | None:
    """Ids [H, W] of a label file; None where it holds colours."""
    values, mask = pixels.values, (1 << pixels.colour_bits) - 1
    if pixels.colour_bits:
        dtype = np.uint8 if pixels.colour_bits == 8 else np.uint16
        bits = (0, pixels.colour_bits, 2 * pixels.colour_bits)
        red, green, blue = ((values >> shift & mask).astype(dtype) for shift in bits)
        grey = (red == green).all() and (red == blue).all()
        return red if grey or not (green.any() or blue.any()) else None
    if pixels.palette and coding.colours and not coding.published and not coding.classes.built_in:
        used = [raw for raw in _counts(values) if raw < len(pixels.palette)]
        if all(pixels.palette[raw] in coding.colours for raw in used):
            return None
    return values


def _seams(ids: np.ndarray) -> dict[str, Any]:
    """`Inspection.border` and `between`."""
    if ids.dtype not in (np.uint8, np.uint16):
        if ids.min() < -32768 or ids.max() > 32767:
            return {}
        ids = ids.astype(np.int16)
    low, high = cv2.erode(ids, _NEAR), cv2.dilate(ids, _NEAR)
    return {"border": int((low != high).sum()), "between": _counts(ids[(low < ids) & (ids < high)])}


def _read(dataset: Dataset, problems: list[str], read: Callable[..., T], *arguments: Any) -> T | None:
    """read(*arguments); None where that is a problem, which is then among `problems`."""
    try:
        return read(*arguments)
    except ValueError as error:
        # What was missing when the data set was opened has been told.
        if not (dataset.problems and isinstance(error.__cause__, FileNotFoundError)):
            problems.append(str(error))
        return None


def _counts(values: np.ndarray) -> dict[int, int]:
    if values.dtype == np.uint8 and values.size < 1 << 24:  # up to where float32 counts one by one
        counts = cv2.calcHist([values], [0], None, [256], [0, 256]).ravel()
        return {i: int(counts[i]) for i in np.flatnonzero(counts).tolist()}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _height(where: np.ndarray) -> float:
    """Sum over the pixels of a mask [H, W] of how low they lie, 0 at the top and 1 at the bottom."""
    return float(where.sum(1) @ np.linspace(0, 1, len(where)))
