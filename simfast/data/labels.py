"""Label files: from what they hold to train ids."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from simfast.config.classes import IGNORE, RGB, Classes
from simfast.data.label_pixels import LabelPixels, read_label_pixels

_MOST_SHOWN = 3


class _Reading(NamedTuple):
    """One way to read a file: what each value that it holds is, and stands for."""

    kind: Literal["ids", "colours"]
    shown: list[int | RGB | str]  # for errors
    train_ids: list[int | None]  # None: not listed

    @property
    def listed(self) -> int:
        return len(self.train_ids) - self.train_ids.count(None)

    @property
    def full(self) -> bool:
        return self.listed == len(self.train_ids)


@dataclass(frozen=True, eq=False)
class LabelCoding:
    """What label files of a data set hold.

    Attributes:
        ids: id in the files, 0-65535 -> train id, or 255 for don't care.
        colours: colour in the files -> train id, or 255.
        classes: the class list.
        other: what an id or colour is that neither names: an "error", or "ignore".
        published: whether the ids are those of a published set, so that a palette is only decoration.
        pseudo: whether they are pseudo labels, which hold places in the class list.
        present: train ids that can occur, where the set is known to lack some of the table's; None: all of them.
    """

    ids: Mapping[int, int]
    colours: Mapping[RGB, int]
    classes: Classes
    other: Literal["error", "ignore"] = "error"
    published: bool = False
    pseudo: bool = False
    present: tuple[int, ...] | None = None

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Train ids that can occur, ascending."""
        if self.present is not None:
            return self.present
        return tuple(sorted({*self.ids.values(), *self.colours.values()} - {IGNORE}))

    @property
    def takes_map(self) -> bool:
        """Whether a user's id map may say otherwise: a built-in class list reads a published set by its own table."""
        return not (self.published and self.classes.built_in)

    def read(self, path: Path) -> np.ndarray:
        """Train ids, uint8 [H, W], of a label file: PNG, BMP, TIFF or NPY.

        One channel holds ids, as written, and a signed -1 is don't care; where its values are no listed ids, they may
        be greys among the listed colours. Three channels, of 8 or 16 bits, hold colours, or ids in all three of them or
        in red alone. Alpha must be constant. A palette is decoration where `published` or where it is a ramp of greys.
        By a user's own class list that has colours, it counts if all of it that is used is listed; else indices are
        ids, which it must not paint as another class.

        Raises:
            ValueError: an unreadable file, an id or colour that is not listed where `other` is an error, two readings
                that differ, a palette that contradicts its indices; names the file, the pixel and what mends it.
        """
        return self.train_ids(read_label_pixels(Path(path)), path)

    def train_ids(self, pixels: LabelPixels, path: Path) -> np.ndarray:
        """`read` of what `read_label_pixels` gave of the file."""
        used = _Used(pixels.values, path)
        if pixels.colour_bits:
            reading = self._of_channels(pixels, used)
        elif pixels.palette is not None:
            reading = self._of_palette(pixels.palette, used)
        else:
            reading = self._of_greys([pixels.colour(value) for value in used.values], used)
        return self._painted(reading, used)

    def remap(self, label: np.ndarray, path: Path) -> np.ndarray:
        """Train ids of a map of ids.

        Args:
            label: integer [H, W], ids as in the files.
            path: the file that the label came from, for the error.

        Returns:
            uint8, the shape of `label`.

        Raises:
            ValueError: an id in `label` that `ids` does not name, where `other` is an error.
        """
        used = _Used(label, path)
        return self._painted(self._by_ids(used.values), used)

    def _by_ids(self, ids: list[int]) -> _Reading:
        return _Reading("ids", ids, [IGNORE if i == -1 else self.ids.get(i) for i in ids])

    def _by_colours(self, colours: list[RGB | None], shown: list[RGB | str]) -> _Reading:
        return _Reading("colours", shown, [self.colours.get(colour) for colour in colours])

    def _fitting(self, *readings: _Reading) -> list[_Reading]:
        """Those that list all of a file; where others may be ignored and none does, those that list some of it."""
        full = [reading for reading in readings if reading.full]
        return full or [reading for reading in readings if self.other == "ignore" and reading.listed]

    def _of_greys(self, colours: list[RGB | None], used: "_Used") -> _Reading:
        by_ids = self._by_ids(used.values)
        return (*self._fitting(by_ids, self._by_colours(colours, colours)), by_ids)[0]

    def _nearly(self, *readings: _Reading) -> _Reading:
        """Of those that do not fit, the one that the error should tell of."""
        return max(readings, key=lambda reading: (reading.listed, bool(getattr(self, reading.kind))))

    def _of_channels(self, pixels: LabelPixels, used: "_Used") -> _Reading:
        channels = [pixels.channels(value) for value in used.values]
        colours = [pixels.colour(value) for value in used.values]
        shown = [colour or f"{deep} in 16 bits" for colour, deep in zip(colours, channels, strict=True)]
        by_colours = self._by_colours(colours, shown)
        grey = all(red == green == blue for red, green, blue in channels)
        if not grey and any(green or blue for _, green, blue in channels):
            if not self.colours:
                raise ValueError(
                    f"{used.path}: a label map must hold ids where no colours are listed, got the colour {channels[0]} "
                    f"{used.at(0)}; {_GIVE_COLOURS}"
                )
            return by_colours
        by_ids = self._by_ids([red for red, _, _ in channels])
        fitting = self._fitting(by_ids, by_colours)
        if len(fitting) == 2:
            for place, (as_id, as_colour) in enumerate(zip(by_ids.train_ids, by_colours.train_ids, strict=True)):
                if (IGNORE if as_id is None else as_id) != (IGNORE if as_colour is None else as_colour):
                    raise ValueError(
                        f"{used.path}: a label map must be of ids or of colours, and this one could be either: "
                        f"{shown[place]} {used.at(place)} is {self._name(as_colour)} as a colour and "
                        f"{self._name(as_id)} as the id {channels[place][0]}; give --classes FILE with ids alone or "
                        "with colours alone, or save ids with one channel"
                    )
        return fitting[0] if fitting else self._nearly(by_ids, by_colours)

    def _of_palette(self, palette: list[RGB], used: "_Used") -> _Reading:
        paints = [palette[value] if value < len(palette) else None for value in used.values]
        by_ids = self._by_ids(used.values)
        if self.published:
            return by_ids
        if all(paint in (None, (value,) * 3) for value, paint in zip(used.values, paints, strict=True)):
            return self._of_greys(paints, used)
        own = bool(self.colours) and not self.classes.built_in
        displayed = {entry.colour: train for train, entry in enumerate(self.classes.entries)}
        table = self.colours if own else displayed
        by_paints = _Reading("colours", [paint or "no colour" for paint in paints], [table.get(p) for p in paints])
        if own and by_paints.full:
            return by_paints
        clash = _clash(by_ids, by_paints)
        if clash is None and by_ids.full:
            return by_ids
        if own and self.other == "ignore" and by_paints.listed:
            return by_paints
        if clash is not None:
            raise ValueError(
                f"{used.path}: its palette contradicts its indices: index {used.values[clash]} {used.at(clash)} is "
                f"painted {paints[clash]} as {self._name(by_paints.train_ids[clash])}, and as an id it is "
                f"{self._name(by_ids.train_ids[clash])}; if the colours are right, {_GIVE_COLOURS}; "
                "if the indices are, save it without the palette"
            )
        return self._nearly(by_paints, by_ids) if own else by_ids

    def _painted(self, reading: _Reading, used: "_Used") -> np.ndarray:
        """The map of train ids.

        Raises:
            ValueError: something that is not listed, where `other` is an error.
        """
        if self.other == "ignore" or reading.full:
            return used.painted([IGNORE if train is None else train for train in reading.train_ids])
        places = sorted((i for i, train in enumerate(reading.train_ids) if train is None), key=lambda i: used.first[i])
        got = ", ".join(f"{reading.shown[i]} {used.at(i)}" for i in places[:_MOST_SHOWN])
        got += f" and {len(places) - _MOST_SHOWN} more" if len(places) > _MOST_SHOWN else ""
        if reading.kind == "ids":
            rule = f"label ids must be among {_ranges(self.ids) or 'those of the class list, which has none'}"
            remedy = "list them in a class file (--classes FILE), or map them with --source-ids or --target-ids FILE"
            remedy += "" if self.takes_map else beside_own_list(self.classes)
            if self.pseudo:
                came = (
                    f"{got}; pseudo labels hold places in the class list, and are made anew by `simfast pseudo-labels`"
                )
                raise ValueError(f"{used.path}: {rule}, got {came}")
        else:
            rule = f"label colours must be among the {len(self.colours)} of the class list {self.classes}"
            remedy = "list them in a class file (--classes FILE)"
        raise ValueError(f"{used.path}: {rule}, got {got}; {remedy}; or say `other: ignore` in the class file")

    def _name(self, train: int | None) -> str:
        return "not listed" if train is None else "don't care" if train == IGNORE else repr(self.classes.names[train])


def beside_own_list(classes: Classes) -> str:
    """What an id map of a published set has to be given with in place of a built-in class list, for errors."""
    copy = f"a file of what `simfast classes {classes}` prints; data without a map are then read by its ids"
    return f" beside --classes COPY ({copy})"


_GIVE_COLOURS = (
    "give --classes FILE whose classes have colours (`simfast classes cityscapes` prints one), and no id map"
)


class _Used:
    """The values that a map holds, in ascending order, and where; found by its runs, which are few in label maps.

    Attributes:
        path: the file, for errors.
        values: each value that occurs.
        first: flat index of the first pixel of each.
    """

    def __init__(self, label: np.ndarray, path: Path):
        self.path, self._shape = path, label.shape
        flat = label.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        values, first, self._places = np.unique(flat[starts], return_index=True, return_inverse=True)
        self.values: list[int] = values.tolist()
        self.first: list[int] = starts[first].tolist()
        self._lengths = np.diff(starts, append=flat.size)

    def at(self, place: int) -> str:
        """Where a value is first."""
        y, x = divmod(self.first[place], self._shape[1])
        return f"at (x, y) = ({x}, {y})"

    def painted(self, train_ids: list[int]) -> np.ndarray:
        """The map with another value, uint8, for each."""
        return np.repeat(np.array(train_ids, np.uint8)[self._places], self._lengths).reshape(self._shape)


def _clash(by_ids: _Reading, by_paints: _Reading) -> int | None:
    """The first value whose paint is that of another class than its id's; black is no paint for what has no class."""
    for place, (train, painted) in enumerate(zip(by_ids.train_ids, by_paints.train_ids, strict=True)):
        bare = train == IGNORE and by_paints.shown[place] == (0, 0, 0)
        if train is not None and painted not in (None, IGNORE, train) and not bare:
            return place
    return None


def _ranges(ids: Iterable[int]) -> str:
    """Sorted ids with runs shortened: 0-18, 255."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)
