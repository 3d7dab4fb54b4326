"""What a data set probably does not mean to hold, from what `inspection` counted: files are read without an error, yet
classes would be trained on that nobody meant. Each suspicion is one sentence that names files and what mends it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from simfast.config.classes import IGNORE, RGB
from simfast.data.classes import PUBLISHED
from simfast.data.inspection import Inspection
from simfast.data.labels import beside_own_list
from simfast.data.order import Dataset

MOSTLY = 0.5
"""Share of "don't care" pixels above which a part is suspicious."""
LOST = 0.1
"""Share of "don't care" pixels above which a class that occurs nowhere may be among them."""
SHAPE = 0.02
"""By which a label's width to height may differ from its image's, where only that can."""
SEAMS = 0.15
"""Share of a label map's border pixels whose id lies between those of two neighbours. Of exact labels of streets it is
0.02 to 0.05, and 0.11 where they are shrunk to 80x60; where labels were resized with interpolation, 0.19 to 0.5."""
SEAM_FILES = 0.1
"""Share of the files in which that has to be seen."""
BORDER = 200
"""Border pixels that a label map must have to be judged by."""
FOREIGN = 0.3
"""Share of pixels that an id map does not take for a class, above which another one is tried."""
HIGHER = 0.15
"""Of the picture's height: how far road must lie above sky, on average, to have been exchanged for something."""


class Found:
    """What was inspected of a part, with the names to tell it by.

    Attributes:
        items: in order, of all files or of a sample.
        labelled: those of them whose label could be read.
        ids: ids in the label files -> their pixels; empty where the files hold colours, or are not at hand.
    """

    def __init__(self, dataset: Dataset, items: Sequence[Inspection], part: str):
        self.dataset, self.items = dataset, sorted(items, key=lambda item: item.number)
        self.labelled = [item for item in self.items if item.pixels]
        self.ids = _sum(item.ids for item in self.items)
        self.classes = dataset.coding.classes
        self.domain = "source" if part.startswith("source") else "target"

    @property
    def pixels(self) -> Counter[int]:
        """Pixels of each train id."""
        return _sum(item.pixels for item in self.items)

    @property
    def where(self) -> str:
        """The folder of the labels."""
        return self.dataset.read_from.get("labels", self.dataset.read_from["images"])

    def image(self, item: Inspection) -> str | Path:
        """The file of an image; of a cache its name."""
        return self._file("images", item)

    def label(self, item: Inspection) -> str | Path:
        """The file of a label map; of a cache its name."""
        return self._file("labels", item)

    def _file(self, kind: str, item: Inspection) -> str | Path:
        files = getattr(self.dataset, kind, None)
        return files[item.number] if files else f"{self.where}: {self.dataset.names[item.number]}"

    def void_ids(self) -> list[int]:
        """Ids in the files that are read as don't care, most pixels first."""
        table = self.dataset.coding.ids
        return [i for i, _ in self.ids.most_common() if table.get(i, IGNORE) == IGNORE]

    def says_which(self, example: str | None = None) -> str:
        """The options that say which id is which class, with an example of what a map has to hold."""
        text = f"--{self.domain}-ids FILE" + (f" with {{{example}}}" if example else "")
        return text + (" or --classes FILE" if self.dataset.coding.takes_map else beside_own_list(self.classes))


def suspicions(found: Found) -> list[str]:
    """A sentence for each thing that is suspicious in a part."""
    # What ids stand for is told once: the first of these is the closest to the cause.
    meaning = next(
        filter(None, (kind(found) for kind in (one_class, other_ids, mostly_void, not_listed, upside_down))), None
    )
    others = (kind(found) for kind in (all_labels_constant, seams, palettes, shapes, constant_images))
    return [sentence for sentence in (meaning, *others) if sentence]


def all_void(found: Found) -> str | None:
    """Labels without a pixel of any class."""
    if not found.labelled or set(found.pixels) != {IGNORE}:
        return None
    ids = f" (they hold {_some(found.void_ids())})" if found.ids else ""
    return (
        f"{found.where}: a label map must have a pixel of some class, got don't care alone in all "
        f"{len(found.labelled)}{ids}, such as {found.label(found.labelled[0])}; {found.says_which()} says which id is "
        "which class"
    )


def one_class(found: Found) -> str | None:
    """One class alone."""
    classes = [i for i in found.pixels if i != IGNORE]
    if len(classes) != 1:
        return None
    text = f"{found.where}: {found.classes.names[classes[0]]} is the only class in {len(found.labelled)} label maps"
    void = found.void_ids()
    if not void:
        return f"{text}; if there are more, {found.says_which()} names them"
    ids = sorted(found.ids)
    example = ", ".join(f"{raw}: {train}" for train, raw in enumerate(ids)) if len(ids) < 6 else None
    return (
        f"{text}, such as {found.label(_most(found.labelled, _void_share))}, and {_some(void)} is read as don't care; "
        f"if it is a class, {found.says_which(example)} says so"
    )


def mostly_void(found: Found) -> str | None:
    """More don't care than classes."""
    pixels = found.pixels
    share = pixels[IGNORE] / max(1, pixels.total())
    if not MOSTLY < share < 1:
        return None
    worst = _most(found.labelled, _void_share)
    void = f" (in the files {_some(found.void_ids())})" if found.void_ids() else ""
    return (
        f"{found.where}: {share:.0%} of the pixels are don't care{void}, most in {found.label(worst)} "
        f"({_void_share(worst):.0%}); if they are classes, {found.says_which()} names them"
    )


def not_listed(found: Found) -> str | None:
    """Label maps without a listed pixel, or classes without one, where what is not listed may be ignored."""
    pixels = found.pixels
    if found.dataset.coding.other != "ignore" or set(pixels) <= {IGNORE}:
        return None
    why = "by its `other: ignore` the class list takes what it does not name for don't care"
    if void := [item for item in found.labelled if set(item.pixels) == {IGNORE}]:
        came = f"{len(void)} of {len(found.labelled)} label maps hold don't care alone, such as {found.label(void[0])}"
        return f"{found.where}: {came}; {why}: look whether they hold what the others do"
    absent = [found.classes.names[i] for i in found.dataset.class_ids if i not in pixels]
    share = pixels[IGNORE] / pixels.total()
    if not absent or share <= LOST:
        return None
    return (
        f"{found.where}: {_some(absent)} in none of {len(found.labelled)} label maps, and {share:.0%} of the pixels "
        f"are don't care, most in {found.label(_most(found.labelled, _void_share))}; {why}: look whether it names "
        "what stands for these classes"
    )


def all_labels_constant(found: Found) -> str | None:
    """Not one label map with two values in it."""
    if len(found.labelled) < 2 or len(found.pixels) < 2 or any(len(item.pixels) > 1 for item in found.labelled):
        return None
    return (
        f"{found.where}: each of {len(found.labelled)} label maps has one value all over, such as "
        f"{found.label(found.labelled[0])}; look whether these are label maps of the pixels"
    )


def other_ids(found: Found) -> str | None:
    """Train ids where the files are read by another table, or the reverse."""
    table, count = found.dataset.coding.ids, len(found.classes)
    ids = {raw: pixels for raw, pixels in found.ids.items() if raw not in (IGNORE, -1)}
    if len(ids) < 2 or not table:
        return None
    train_ids = {i: i for i in range(count)}
    named = {raw for raw, train in table.items() if train != IGNORE or not found.dataset.coding.published}
    foreign = _share(ids, lambda raw: raw not in named)
    is_identity = all(table.get(i) == i for i in train_ids)
    if not is_identity and foreign > FOREIGN and set(ids) <= set(train_ids):
        example = f"0: 0, 1: 1, ... {count - 1}: {count - 1}, {IGNORE}: {IGNORE}"
        return (
            f"{found.where}: ids look like train ids: all are within 0-{count - 1}, and {foreign:.0%} of the pixels "
            f"have one that stands for no class here ({_some(i for i in ids if i not in named)}), such as in "
            f"{found.label(_first(found.items))}; if so, {found.says_which(example)} says so"
        )
    if is_identity and not set(ids) <= set(table):
        for name in ("cityscapes", "gta5", "synthia"):
            raw = PUBLISHED[name]
            void = _share(ids, lambda i, raw=raw: raw.get(i) not in found.classes.names)
            if set(ids) <= set(raw) and void < FOREIGN:
                example = ", ".join(f"{i}: {raw[i]}" for i in sorted(ids) if raw[i] in found.classes.names)
                return (
                    f"{found.where}: ids look like those of {name} where train ids are expected, such as in "
                    f"{found.label(_first(found.items))}; if so, {found.says_which(example)} says so"
                )
    return None


def upside_down(found: Found) -> str | None:
    """Sky under road: what is read as one of them is something else."""
    names = found.classes.names
    pair = [_height(found, names.index(name)) for name in ("road", "sky") if name in names]
    if len(pair) < 2 or None in pair or pair[1] - pair[0] < HIGHER:
        return None
    example = next(item for item in found.labelled if {names.index("road"), names.index("sky")} <= set(item.pixels))
    return (
        f"{found.where}: what is read as sky lies below what is read as road, such as in {found.label(example)}; "
        f"if ids stand for other classes, {found.says_which()} says which, and a picture that is upside down is to be "
        "turned together with its label map"
    )


def seams(found: Found) -> str | None:
    """Ids that interpolation made, along the borders of the real ones."""
    judged = [item for item in found.items if item.border >= BORDER]
    seen = [item for item in judged if _seam_share(item) > SEAMS]
    between = _sum(item.between for item in seen)
    # A class that outlines another one lies between two ids as well, but it is one alone.
    several = sum(count > 0.05 * between.total() for count in between.values()) > 1
    if len(seen) <= SEAM_FILES * len(judged) or not several:
        return None
    share = sum(sum(item.between.values()) for item in seen) / sum(item.border for item in seen)
    only = [raw for raw in sorted(between) if between[raw] > 0.85 * found.ids[raw]]
    ids = f"; ids {_some(only)} are hardly anywhere else" if only else ""
    return (
        f"{found.label(_most(seen, _seam_share))}: ids that lie between those of their neighbours follow the borders "
        f"({share:.0%} of the border pixels in {len(seen)} of {len(judged)} label maps{ids}), as if labels had been "
        "resized with interpolation; resize them to the nearest pixel, or use those at full size"
    )


def palettes(found: Found) -> str | None:
    """An id that is painted in two colours."""
    first: dict[int, tuple[RGB, Inspection]] = {}
    odd: dict[int, tuple[Inspection, int]] = {}
    for item in found.labelled:
        for raw, colour in item.palette.items():
            if first.setdefault(raw, (colour, item))[0] != colour:
                odd.setdefault(item.number, (item, raw))
    if not odd:
        return None
    item, raw = next(iter(odd.values()))
    colour, other = first[raw]
    # The palettes of a published set are decoration, whatever the class list.
    read = f"--{found.domain} folder " if found.dataset.coding.published else ""
    return (
        f"{found.label(item)}: its palette paints id {raw} {item.palette[raw]}, that of {found.label(other)} {colour} "
        f"(label maps that contradict an earlier one: {len(odd)}); if the colours are the classes and not the ids, "
        f"{read}--classes FILE with `colours` says so"
    )


def shapes(found: Found) -> str | None:
    """Label maps of another shape than their images, where these may be of any size: transferred ones."""
    odd = [item for item in found.labelled if item.sizes and _differ(*item.sizes)]
    if not odd:
        return None
    image, label = ("{}x{}".format(*size) for size in odd[0].sizes)
    return (
        f"{found.label(odd[0])}: is {label}, and {image} its image {found.image(odd[0])}; each is stretched over the "
        f"other ({len(odd)} of {len(found.labelled)} label maps differ from their images by more than {SHAPE:.0%} in "
        "width to height, or are turned); give images of the label maps' shape"
    )


def constant_images(found: Found) -> str | None:
    """Images with one colour all over."""
    odd = [item for item in found.items if item.constant]
    if not odd:
        return None
    return (
        f"{found.image(odd[0])}: has one colour all over ({len(odd)} of {len(found.items)} images have); "
        "look whether it was written or downloaded whole, and take it out"
    )


def _void_share(item: Inspection) -> float:
    return item.pixels.get(IGNORE, 0) / sum(item.pixels.values())


def _seam_share(item: Inspection) -> float:
    return sum(item.between.values()) / item.border


def _differ(image: tuple[int, int], label: tuple[int, int]) -> bool:
    """Whether two sizes have another shape."""
    return abs((label[0] / image[0]) / (label[1] / image[1]) - 1) > SHAPE


def _height(found: Found, train: int) -> float | None:
    """Where a class lies on average, 0 at the top and 1 at the bottom of the picture; None where it does not occur."""
    pixels = found.pixels[train]
    return sum(item.heights.get(train, 0.0) for item in found.items) / pixels if pixels else None


def _most(items: Sequence[Inspection], share: Callable[[Inspection], float]) -> Inspection:
    return max(items, key=share)  # the first of equals


def _first(items: Sequence[Inspection]) -> Inspection:
    return next(item for item in items if item.ids)


def _share(ids: Mapping[int, int], which: Callable[[int], bool]) -> float:
    return sum(count for raw, count in ids.items() if which(raw)) / sum(ids.values())


def _sum(counts) -> Counter[int]:
    total: Counter[int] = Counter()
    for one in counts:
        total.update(one)
    return total


def _some(ids, most: int = 6) -> str:
    ids = list(ids)
    return ", ".join(map(str, ids[:most])) + (" ..." if len(ids) > most else "")
