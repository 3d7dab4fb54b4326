"""The 19 Cityscapes train ids: names, colours, stuff and things, and the way there from other label ids."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

NUM_CLASSES = 19
IGNORE = 255

_CLASSES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)
CLASS_NAMES: tuple[str, ...] = tuple(name for name, _ in _CLASSES)
PALETTE = np.zeros((256, 3), np.uint8)
"""RGB of each train id as Cityscapes paints it; black for everything else."""
PALETTE[:NUM_CLASSES] = [colour for _, colour in _CLASSES]

STUFF: tuple[int, ...] = (0, 1, 2, 3, 4, 8, 9, 10)
"""Classes matched as a whole (section 4.2: road, sidewalk, building, wall, fence, vegetation, terrain, sky)."""
THINGS: tuple[int, ...] = (5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Classes matched region by region: all the others."""

_NOT_IN_16 = (9, 14, 16)  # terrain, truck, train: SYNTHIA does not label them
_NOT_IN_13 = (*_NOT_IN_16, 3, 4, 5)  # wall, fence, pole
CLASS_SETS: dict[int, tuple[int, ...]] = {
    19: tuple(range(19)),
    16: tuple(c for c in range(19) if c not in _NOT_IN_16),
    13: tuple(c for c in range(19) if c not in _NOT_IN_13),
}
"""Train ids of the class sets that the literature reports on: 19 from GTA5, 16 and 13 from SYNTHIA (section 6.3)."""

TRAIN_IDS: dict[int, int] = {i: i for i in (*range(NUM_CLASSES), IGNORE)}
"""The id map of labels that are train ids already."""
CAMVID_IDS: dict[int, int] = {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 11: IGNORE}
"""The 11 classes and the void of CamVid's 480x360 edition (SegNet tutorial)."""
LABEL_IDS: tuple[int, ...] = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
"""Cityscapes label id of each train id."""
CITYSCAPES_IDS: dict[int, int] = {i: LABEL_IDS.index(i) if i in LABEL_IDS else IGNORE for i in range(34)}
"""The official table (cityscapesscripts.helpers.labels): the 19 evaluated classes of ids 0-33, the rest void."""
GTA5_IDS: dict[int, int] = CITYSCAPES_IDS | {34: IGNORE}
"""GTA5's labels are Cityscapes ids, with 34 for the licence plate, which Cityscapes' label maps do not hold."""
_SYNTHIA = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)  # in the order of the train ids
SYNTHIA_IDS: dict[int, int] = {i: _SYNTHIA.index(i) if i in _SYNTHIA else IGNORE for i in range(23)}
"""SYNTHIA-RAND-CITYSCAPES' 23 ids (released code); no class for void 0, parking 13, road work 14, lane marking 22."""


def remap(label: np.ndarray, ids: Mapping[int, int], path: Path) -> np.ndarray:
    """Train ids of a label map.

    Args:
        label: uint8 or uint16, any shape, raw ids.
        ids: raw id -> train id, both in [0, 255].
        path: the file that the label came from, for the error.

    Returns:
        uint8, the shape of `label`.

    Raises:
        ValueError: an id in `label` that `ids` does not name.
    """
    table = np.full(np.iinfo(label.dtype).max + 1, -1, np.int16)
    table[list(ids)] = list(ids.values())
    mapped = table[label]
    if mapped.min(initial=0) < 0:
        unknown = ", ".join(map(str, np.unique(label[mapped < 0])))
        raise ValueError(f"{path}: label ids must be among {_ranges(ids)}, got {unknown}")
    return mapped.astype(np.uint8)


def colourise(label: np.ndarray) -> np.ndarray:
    """The picture of a map of train ids, [H, W] -> uint8 RGB [H, W, 3]."""
    return PALETTE[label]


def _ranges(ids) -> str:
    """Sorted ids with runs shortened: 0-18, 255."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)
