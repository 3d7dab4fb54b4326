"""List files: which images, and perhaps which label maps, are a part of a data set."""

import csv
from pathlib import Path
from typing import NamedTuple

from simfast.data.listing import inside, name_of

LIST_SUFFIXES = (".txt", ".lst", ".csv")


class Row(NamedTuple):
    """A line of a list file: paths as it gives them, with "/", relative and never upwards; label None where none is."""

    number: int
    image: str
    label: str | None


def read_list(path: Path) -> list[Row]:
    """The lines of a list file: "image" or "image label", with white space or a comma between.

    Empty lines and those that begin with # are skipped, and so is a first line "image,label". A path with spaces or
    commas stands in double quotes.

    Raises:
        ValueError: an unreadable file, no line, a line of other form, a path that could leave its folder, an image that
            stands twice; names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a readable list of images in UTF-8, got {error}") from error
    rows, seen = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            fields = _fields(line)
        except csv.Error as error:
            raise ValueError(f"{path}:{number}: must be a line of paths, got {error}") from error
        if not rows and [field.lower() for field in fields] in (["image"], ["image", "label"]):
            continue
        if not 0 < len(fields) <= 2:
            rule = 'must be "image" or "image label" (a path with spaces in double quotes)'
            raise ValueError(f"{path}:{number}: {rule}, got {line.strip()!r:.200}")
        image, label = (*(Path(inside(field, f"{path}:{number}")).as_posix() for field in fields), None)[:2]
        name = name_of(image)
        if name in seen:
            rule = "must name an image that stands in no other line (beside its suffix)"
            raise ValueError(f"{path}:{number}: {rule}, got {image} as in line {seen[name]}")
        seen[name] = number
        rows.append(Row(number, image, label))
    if not rows:
        raise ValueError(f"{path}: must name an image, got none")
    return rows


def _fields(line: str) -> list[str]:
    """The fields of a line, without empty ones at its end; a backslash, as Windows has it, is a "/"."""
    line = line.strip().replace("\\", "/").replace("\t", " ")
    if "," in line:
        (fields,) = csv.reader([line], skipinitialspace=True)
    else:
        (fields,) = csv.reader([line], delimiter=" ")
        fields = [field for field in fields if field]
    fields = [field.strip() for field in fields]
    while fields and not fields[-1]:
        fields.pop()
    return fields
