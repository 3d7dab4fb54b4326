"""Label files: from what they hold to train ids."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from simfast.config.classes import IGNORE, RGB, Classes
from simfast.data.pictures import read_picture


@dataclass(frozen=True, eq=False)
class LabelCoding:
    """What label files of a data set hold.

    Attributes:
        ids: id in the files, 0-65535 -> train id, or 255 for don't care.
        colours: colour in the files -> train id, or 255.
        classes: the class list.
        other: what an id or colour is that neither names: an "error", or "ignore".
        published: whether the ids are those of a published set, so that a palette is only decoration.
        present: train ids that can occur, where the set is known to lack some of the table's; None: all of them.
    """

    ids: Mapping[int, int]
    colours: Mapping[RGB, int]
    classes: Classes
    other: Literal["error", "ignore"] = "error"
    published: bool = False
    present: tuple[int, ...] | None = None

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Train ids that can occur, ascending."""
        if self.present is not None:
            return self.present
        return tuple(sorted({*self.ids.values(), *self.colours.values()} - {IGNORE}))

    def read(self, path: Path) -> np.ndarray:
        """Train ids, uint8 [H, W], of a picture with one 8-bit channel, grey or palette.

        Raises:
            ValueError: an unreadable file, another kind of picture, an id that `ids` does not name.
        """
        picture = read_picture(path)
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{path}: a label map must have one 8-bit channel, got mode {picture.mode}")
        return self.remap(np.asarray(picture), path)

    def remap(self, label: np.ndarray, path: Path) -> np.ndarray:
        """Train ids of a label map.

        Args:
            label: uint8 or uint16, any shape, ids as in the files.
            path: the file that the label came from, for the error.

        Returns:
            uint8, the shape of `label`.

        Raises:
            ValueError: an id in `label` that `ids` does not name, where `other` is an error.
        """
        size = np.iinfo(label.dtype).max + 1
        table = np.full(size, IGNORE if self.other == "ignore" else -1, np.int16)
        known = {raw: train for raw, train in self.ids.items() if raw < size}
        table[list(known)] = list(known.values())
        mapped = table[label]
        if mapped.min(initial=0) < 0:
            unknown = ", ".join(map(str, np.unique(label[mapped < 0])))
            raise ValueError(f"{path}: label ids must be among {_ranges(self.ids)}, got {unknown}")
        return mapped.astype(np.uint8)


def _ranges(ids: Iterable[int]) -> str:
    """Sorted ids with runs shortened: 0-18, 255."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)
