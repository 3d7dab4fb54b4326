"""The built-in class lists, as what a file of classes holds; `simfast classes` prints them."""

from typing import Any

# The 19 evaluated classes of Cityscapes in the order of their train ids, and their label ids
# (cityscapesscripts.helpers.labels). Things and stuff are those of section 4.2.
_CITYSCAPES = (
    ("road", (128, 64, 128), "stuff", 7),
    ("sidewalk", (244, 35, 232), "stuff", 8),
    ("building", (70, 70, 70), "stuff", 11),
    ("wall", (102, 102, 156), "stuff", 12),
    ("fence", (190, 153, 153), "stuff", 13),
    ("pole", (153, 153, 153), "thing", 17),
    ("traffic light", (250, 170, 30), "thing", 19),
    ("traffic sign", (220, 220, 0), "thing", 20),
    ("vegetation", (107, 142, 35), "stuff", 21),
    ("terrain", (152, 251, 152), "stuff", 22),
    ("sky", (70, 130, 180), "stuff", 23),
    ("person", (220, 20, 60), "thing", 24),
    ("rider", (255, 0, 0), "thing", 25),
    ("car", (0, 0, 142), "thing", 26),
    ("truck", (0, 0, 70), "thing", 27),
    ("bus", (0, 60, 100), "thing", 28),
    ("train", (0, 80, 100), "thing", 31),
    ("motorcycle", (0, 0, 230), "thing", 32),
    ("bicycle", (119, 11, 32), "thing", 33),
)
_NAMES = tuple(name for name, *_ in _CITYSCAPES)
_VOID_IDS = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 34)  # 34 is GTA5's licence plate
_VOID_COLOURS = (
    *((0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180)),
    *((150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110)),
)
# SYNTHIA's id of each of its classes, and CamVid's classes in the order of its ids (480x360 edition, SegNet tutorial).
_SYNTHIA = dict(zip(_NAMES, (3, 4, 2, 21, 5, 7, 15, 9, 6, None, 1, 10, 17, 8, None, 19, None, 12, 11), strict=True))
_CAMVID = (
    *("sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car", "person", "rider"),
)
# The class sets that the literature reports on: 19 from GTA5, 16 and 13 from SYNTHIA (section 6.3).
_SET_16 = tuple(name for name in _NAMES if _SYNTHIA[name] is not None)
_SET_13 = tuple(name for name in _SET_16 if name not in ("wall", "fence", "pole"))

ABOUT = {
    "cityscapes": "The 19 evaluated classes of Cityscapes; ids are its label ids, which GTA5 shares.\n"
    "A `folder` read by this very list holds train ids instead; by a copy of it, the ids below.",
    "synthia": "The 16 classes of Cityscapes that SYNTHIA-RAND-CITYSCAPES labels; ids are SYNTHIA's.",
    "camvid": "The 11 classes of CamVid's 480x360 edition under Cityscapes' names; ids are CamVid's.",
}


def content(name: str) -> dict[str, Any]:
    """What the file of a built-in list would hold."""
    if name == "cityscapes":
        classes = [_entry(one, raw) | {"colours": [colour]} for one, colour, _, raw in _CITYSCAPES]
        sets = {"19": list(_NAMES), "16": list(_SET_16), "13": list(_SET_13)}
        ignore: dict[str, Any] = {"ids": _VOID_IDS, "colours": _VOID_COLOURS}
    elif name == "synthia":
        classes = [_entry(one, _SYNTHIA[one]) for one in _SET_16]
        sets, ignore = {"13": list(_SET_13)}, {"ids": (0, 13, 14, 16, 18, 20, 22)}
    else:
        classes = [_entry(one, raw) for raw, one in enumerate(_CAMVID)]
        sets, ignore = {}, {"ids": (len(_CAMVID),)}
    return {"classes": classes, "ignore": ignore, "score_sets": sets}


def _entry(name: str, raw: int) -> dict[str, Any]:
    _, colour, kind, _ = _CITYSCAPES[_NAMES.index(name)]
    return {"name": name, "colour": colour, "kind": kind, "ids": (raw,)}
