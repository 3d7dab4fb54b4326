"""Class lists: what a network tells apart, how that is painted, matched, scored, and written in label files."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from simfast.config import class_lists

IGNORE = 255
"""What a label map holds where a pixel is of no class: don't care."""
MOST_CLASSES = 255
HIGHEST_ID = 65_535
BUILT_IN = ("cityscapes", "camvid", "synthia")
FORMAT = (
    "A file like this is what --classes takes. The order of the classes is that of the train ids, from 0.",
    "  kind: stuff is matched as a whole, a thing region by region.",
    "  ids, colours: what stands for the class in label files; without either, its colour does.",
    "  ignore: what is of no class there. other: error, or ignore, for all that is named nowhere.",
)
"""What is said above a list that is printed."""

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class LabelClass:
    """One class; its place in the list is its *train id*, what label maps hold from reading to prediction.

    Attributes:
        name: as tables show it.
        colour: RGB, 0-255, as pictures show it.
        kind: "stuff", matched as a whole (Eq. 5), or "thing", matched region by region (Eq. 7).
        ids: what stands for it in label files of ids, 0-65535.
        colours: what stands for it in label files of colours.
    """

    name: str
    colour: RGB
    kind: Literal["stuff", "thing"]
    ids: tuple[int, ...] = ()
    colours: tuple[RGB, ...] = ()


@dataclass(frozen=True)
class Classes:
    """A class list.

    Attributes:
        title: the built-in's name, or the file's without suffix.
        entries: 2 to 255 classes, in the order of the train ids.
        ignore_ids, ignore_colours: what label files hold where a pixel is of no class.
        other: what an id or a colour in a label file is that the list does not name: an "error", or "ignore".
        score_sets: (name, train ids) of subsets whose mean IoU is of interest.

    Raises:
        ValueError: naming the key, the rule and what came.
    """

    title: str
    entries: tuple[LabelClass, ...]
    ignore_ids: tuple[int, ...] = ()
    ignore_colours: tuple[RGB, ...] = ()
    other: Literal["error", "ignore"] = "error"
    score_sets: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self):
        if not 2 <= len(self) <= MOST_CLASSES:
            raise ValueError(f"classes: must be 2 to {MOST_CLASSES}, got {len(self)}")
        one = [(f"class {entry.name!r}", entry) for entry in self.entries]
        _require_distinct("name", [(where, entry.name) for where, entry in one])
        _require_distinct("colour", [(where, entry.colour) for where, entry in one])
        ignored = [("ignore", value) for value in self.ignore_ids]
        _require_distinct("ids", [(where, value) for where, entry in one for value in entry.ids] + ignored)
        ignored = [("ignore", value) for value in self.ignore_colours]
        _require_distinct("colours", [(where, value) for where, entry in one for value in entry.colours] + ignored)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return self.title

    @property
    def names(self) -> tuple[str, ...]:
        """By train id."""
        return tuple(entry.name for entry in self.entries)

    @property
    def stuff(self) -> tuple[int, ...]:
        """Train ids matched as a whole."""
        return self._of_kind("stuff")

    @property
    def things(self) -> tuple[int, ...]:
        """Train ids matched region by region."""
        return self._of_kind("thing")

    @property
    def sets(self) -> dict[str, tuple[int, ...]]:
        """Train ids of each score set by its name."""
        return dict(self.score_sets)

    @property
    def built_in(self) -> bool:
        """Whether it is one of `BUILT_IN`; a copy of one from a file is not."""
        return self.title in BUILT_IN

    @property
    def ids(self) -> dict[int, int]:
        """What label files of ids hold -> train id, or `IGNORE`."""
        found = {value: train for train, entry in enumerate(self.entries) for value in entry.ids}
        return found | dict.fromkeys(self.ignore_ids, IGNORE)

    @property
    def colours(self) -> dict[RGB, int]:
        """What label files of colours hold -> train id, or `IGNORE`; empty where no class has a colour there."""
        found = {value: train for train, entry in enumerate(self.entries) for value in entry.colours}
        return found | dict.fromkeys(self.ignore_colours, IGNORE) if found else {}

    def stored(self) -> str | dict[str, Any]:
        """What `classes_of` takes, in plain values: the name of a built-in list, else all of it."""
        return self.title if self.built_in else self._whole()

    def _whole(self) -> dict[str, Any]:
        classes = []
        for entry in self.entries:
            one = {"name": entry.name, "colour": list(entry.colour), "kind": entry.kind}
            one |= {"ids": list(entry.ids)} if entry.ids else {}
            one |= {"colours": [list(colour) for colour in entry.colours]} if entry.colours else {}
            classes.append(one)
        ignore = {"ids": list(self.ignore_ids), "colours": [list(colour) for colour in self.ignore_colours]}
        found = {"title": self.title, "classes": classes, "ignore": {k: v for k, v in ignore.items() if v}}
        sets = {name: [self.names[i] for i in ids] for name, ids in self.score_sets}
        return found | {"other": self.other} | ({"score_sets": sets} if sets else {})

    def text(self) -> str:
        """The list as a file that `--classes` takes."""
        from simfast.config.yaml_text import one_line

        stored = self._whole()
        about = class_lists.ABOUT[self.title].splitlines() if self.built_in else []
        lines = [f"# {line}" for line in (*about, *FORMAT)]
        lines += [] if self.built_in else [f"title: {one_line(stored['title'])}"]
        lines += ["classes:", *(f"  - {one_line(one)}" for one in stored["classes"])]
        lines += [f"{key}: {one_line(stored[key])}" for key in ("ignore", "other") if stored[key]]
        lines += ["score_sets:"] if "score_sets" in stored else []
        lines += [f"  {one_line(name)}: {one_line(one)}" for name, one in stored.get("score_sets", {}).items()]
        return "\n".join(lines) + "\n"

    def _of_kind(self, kind: str) -> tuple[int, ...]:
        return tuple(train for train, entry in enumerate(self.entries) if entry.kind == kind)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source, _handler):
        """As a setting it is whatever `classes_of` takes, and is stored as `stored` has it."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            classes_of, serialization=core_schema.plain_serializer_function_ser_schema(cls.stored)
        )


def classes_of(value: "Classes | Mapping[str, Any] | str | Path") -> Classes:
    """A class list by the name of a built-in one, from a YAML file, or from the mapping that such a file holds.

    Raises:
        ValueError: no such list or file, or one that breaks a rule; names the file, the class and the key.
    """
    if isinstance(value, Classes):
        return value
    if isinstance(value, Mapping):
        return _parsed(value, "classes", "classes")
    if not isinstance(value, str | Path):
        raise ValueError(f"classes: must be one of {', '.join(BUILT_IN)}, a file or a mapping, got {value!r}")
    if str(value) in BUILT_IN:
        return built_in(str(value))
    from simfast.config.yaml_text import read_yaml

    path = Path(value)
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        came = "nothing there" if isinstance(error, FileNotFoundError) else str(error)
        rule = f"must be one of {', '.join(BUILT_IN)}, or a YAML file of classes (`simfast classes` prints one)"
        raise ValueError(f"classes: {path} {rule}, got {came}") from error
    except ValueError as error:
        raise ValueError(f"{path}: must be a readable YAML file, got {error}") from error
    return _parsed(content, path.stem, str(path))


@cache
def built_in(name: str) -> Classes:
    """One of `BUILT_IN`."""
    return replace(_parsed(class_lists.content(name), name, name), title=name)


# ----------------------------------------------------------------------------------------------------------------------
# From what a file holds
# ----------------------------------------------------------------------------------------------------------------------

_KEYS = ("title", "classes", "ignore", "other", "score_sets")
_CLASS_KEYS = ("name", "colour", "kind", "ids", "colours")


def _parsed(content: Any, title: str, where: str) -> Classes:
    """
    Args:
        content: what a file holds.
        title: of a list that does not say its own.
        where: the file, for errors.
    """
    try:
        _check_keys(content, _KEYS, ("classes",), "a class list")
        if not isinstance(content["classes"], list):
            raise ValueError(f"classes: must be a list of classes, got {_came(content['classes'])}")
        entries = tuple(_class(number, one) for number, one in enumerate(content["classes"]))
        ignore = {} if content.get("ignore") is None else content["ignore"]
        _check_keys(ignore, ("ids", "colours"), (), "ignore")
        other = content.get("other", "error")
        if other not in ("error", "ignore"):
            raise ValueError(f"other: must be error or ignore, got {other!r}")
        title = str(content.get("title", title))
        if "title" in content and (not title.isprintable() or not title.strip()):
            raise ValueError(f"title: must be text on one line, got {title!r}")
        return Classes(
            f"{title}.yaml" if title in BUILT_IN else title,  # a list of its own, whatever it says
            entries,
            _ids(ignore.get("ids"), "ignore: ids"),
            _colours(ignore.get("colours"), "ignore: colours"),
            other,
            _score_sets(
                {} if content.get("score_sets") is None else content["score_sets"], [entry.name for entry in entries]
            ),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _class(number: int, one: Any) -> LabelClass:
    name = one.get("name") if isinstance(one, Mapping) else None
    where = f"class {number}" + (f" ({name})" if name else "")
    _check_keys(one, _CLASS_KEYS, ("name", "colour", "kind"), where)
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise ValueError(
            f"{where}: name: must be text on one line (in quotes, if YAML takes it for more), got {name!r}"
        )
    if name == "ignore":
        raise ValueError(
            f"{where}: name: must not be what id maps call don't care, which has a key `ignore` of its own"
        )
    if one["kind"] not in ("stuff", "thing"):
        raise ValueError(f"{where}: kind: must be stuff or thing, got {one['kind']!r}")
    colour = _colour(one["colour"], f"{where}: colour")
    ids, colours = _ids(one.get("ids"), f"{where}: ids"), _colours(one.get("colours"), f"{where}: colours")
    # What is neither: painted in the colour that pictures show it in.
    return LabelClass(name, colour, one["kind"], ids, colours or (() if ids else (colour,)))


def _check_keys(content: Any, known: tuple[str, ...], needed: tuple[str, ...], what: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{what}: must be a mapping with {', '.join(known)}, got {_came(content)}")
    for key in content:
        if key not in known:
            (closest,) = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise ValueError(f"{what}: unknown key {key!r}; the closest one is {closest!r}")
    for key in needed:
        if key not in content:
            raise ValueError(f"{what}: must have {key}, got {', '.join(map(str, content)) or 'nothing'}")


def _ids(values: Any, where: str) -> tuple[int, ...]:
    values = [] if values is None else values if isinstance(values, list | tuple) else [values]
    for value in values:
        if type(value) is not int or not 0 <= value <= HIGHEST_ID:
            raise ValueError(f"{where}: must be whole numbers in 0-{HIGHEST_ID}, got {value!r}")
    return tuple(values)


def _colours(values: Any, where: str) -> tuple[RGB, ...]:
    if not isinstance(values, list | tuple | None):
        raise ValueError(f"{where}: must be a list of colours, got {values!r}")
    return tuple(_colour(value, where) for value in values or ())


def _colour(value: Any, where: str) -> RGB:
    """[128, 64, 128], or "#804080"."""
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            return tuple(bytes.fromhex(value[1:]))
        except ValueError:
            pass
    fits = isinstance(value, list | tuple) and len(value) == 3
    if not fits or any(type(part) is not int or not 0 <= part <= 255 for part in value):
        came = "nothing (what follows a # without quotes is a comment)" if value is None else repr(value)
        raise ValueError(f'{where}: must be red, green and blue in 0-255, as [128, 64, 128] or "#804080", got {came}')
    return tuple(value)


def _score_sets(sets: Any, names: list[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if not isinstance(sets, Mapping):
        raise ValueError(f"score_sets: must map names of sets to lists of classes, got {_came(sets)}")
    found = []
    for name, members in sets.items():
        unknown = [member for member in members if member not in names] if isinstance(members, list) else [members]
        if unknown or not members or name == "auto":
            raise ValueError(f"score_sets: {name}: must be a list of the classes' names, got {unknown or members!r}")
        found.append((str(name), tuple(sorted({names.index(member) for member in members}))))
    return tuple(found)


def _require_distinct(key: str, values: Iterable[tuple[str, Any]]) -> None:
    owner: dict[Any, str] = {}
    for where, value in values:
        if value in owner:
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{where}: {key}: {shown!r} must be there once, got it in {owner[value]} too")
        owner[value] = where


def _came(content: Any) -> str:
    return "nothing" if content is None else f"{type(content).__name__} {content!r}"[:80]


CITYSCAPES = built_in("cityscapes")
