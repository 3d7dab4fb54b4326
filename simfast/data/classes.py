"""How class lists meet data: their colours in pictures, and what label files of each data set hold."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simfast.config.classes import CITYSCAPES, HIGHEST_ID, IGNORE, Classes
from simfast.config.yaml_text import read_yaml
from simfast.data.labels import LabelCoding

_VOID = "void"
_A_NUMBER = re.compile(r"\d{1,9}", re.ASCII).fullmatch
_LABEL_IDS = {train: entry.ids[0] for train, entry in enumerate(CITYSCAPES.entries)}
_SYNTHIA_ORDER = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)  # in the order of the train ids
_CAMVID_ORDER = (10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12)  # train ids of its ids 0-10


def _named(train_ids: Mapping[int, int], raw_ids: Sequence[int]) -> dict[int, str]:
    return {raw: CITYSCAPES.names[train_ids[raw]] if raw in train_ids else _VOID for raw in raw_ids}


_CITYSCAPES_IDS = _named({raw: train for train, raw in _LABEL_IDS.items()}, range(34))
PUBLISHED: dict[str, dict[int, str]] = {
    # The official table (cityscapesscripts.helpers.labels): the 19 evaluated classes of ids 0-33, the rest void.
    "cityscapes": _CITYSCAPES_IDS,
    # GTA5's labels are Cityscapes ids, with 34 for the licence plate, which Cityscapes' label maps do not hold.
    "gta5": _CITYSCAPES_IDS | {34: _VOID},
    # SYNTHIA-RAND-CITYSCAPES' 23 ids (released code); no class for void 0, parking 13, road work 14, lane marking 22.
    # Of Cityscapes' classes it has no terrain, truck and train: what carries their ids (16, 18, 20) occurs nowhere.
    "synthia": _named({raw: train for train, raw in enumerate(_SYNTHIA_ORDER)}, range(23)),
    # The 11 classes and the void of CamVid's 480x360 edition (SegNet tutorial).
    "camvid": _named(dict(enumerate(_CAMVID_ORDER)), range(12)),
    # No train runs through these streets.
    "streets": _named({i: i for i in range(19)}, (*range(19), IGNORE)),
}
"""Published sets: the class, by its name in Cityscapes, of each id in their label files."""
_ABSENT = {"synthia": {"terrain", "truck", "train"}, "streets": {"train"}}
"""Classes that a set's table names and its labels never have."""


def coding_of(data_set: str, classes: Classes, ids: Mapping[int, int] | None = None) -> LabelCoding:
    """How the label files of a data set are read.

    A built-in class list reads a published set by the set's own table, joined by the classes' names: what has no class
    of its name in the list is don't care. A folder read by the built-in list cityscapes holds train ids. All else is
    read by what the list says.

    Args:
        data_set: a name of `open_dataset`.
        classes: the class list.
        ids: id in the label files -> train id or 255, to go by instead.
    """
    published = data_set in PUBLISHED
    class_ids = None
    if ids is not None:
        table = dict(ids)
    elif classes.built_in and published:
        train_of = {name: train for train, name in enumerate(classes.names)}
        table = {raw: train_of.get(name, IGNORE) for raw, name in PUBLISHED[data_set].items()}
        present = set(PUBLISHED[data_set].values()) - _ABSENT.get(data_set, set())
        class_ids = tuple(train for train, name in enumerate(classes.names) if name in present)
    elif classes == CITYSCAPES:
        table = {i: i for i in (*range(len(classes)), IGNORE)}
    else:
        table = classes.ids
    other = "error" if published and classes.built_in else classes.other
    colours = {} if ids is not None or (published and classes.built_in) else classes.colours
    return LabelCoding(table, colours, classes, other, published, present=class_ids)


def palette(classes: Classes) -> np.ndarray:
    """RGB of each train id, uint8 [256, 3]; black for what is no class."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = [entry.colour for entry in classes.entries]
    return colours


def colourise(label: np.ndarray, classes: Classes) -> np.ndarray:
    """The picture of a map of train ids, [H, W] -> uint8 RGB [H, W, 3]."""
    return palette(classes)[label]


def read_ids(path: Path, classes: Classes) -> dict[int, int]:
    """An id map {id in label files: train id} from a YAML or JSON file, which may name the classes, or number them.

    Raises:
        ValueError: the file cannot be read or holds something else; names the file.
    """
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: must be a readable YAML or JSON file, got {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: must map ids in label files to classes, got {type(content).__name__}")
    known = {name: train for train, name in enumerate(classes.names)} | {"ignore": IGNORE}
    known |= {train: train for train in (*range(len(classes)), IGNORE)}
    ids = {}
    for raw, given in content.items():
        raw = int(raw) if isinstance(raw, str) and _A_NUMBER(raw) else raw  # JSON has no other keys than strings
        if type(raw) is not int or not 0 <= raw <= HIGHEST_ID:
            raise ValueError(f"{path}: ids in label files must be whole numbers in 0-{HIGHEST_ID}, got {raw!r:.60}")
        if isinstance(given, bool) or not isinstance(given, int | str) or given not in known:
            rule = f"train ids must be in 0-{len(classes) - 1}, or {IGNORE}, or names of the classes {classes}"
            raise ValueError(f"{path}: {rule}, got {raw}: {given!r:.60}")
        ids[raw] = known[given]
    return ids
