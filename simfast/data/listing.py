"""Files of folders by name: the path under its folder without suffix, with "/", in Unicode's NFC.

Names are compared and written in NFC, since macOS writes what other systems compose ("ü") as two characters.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from simfast.runtime.files import LONGEST_NAME

HIDDEN = (".", "@eaDir", "__MACOSX")
"""How the names of hidden files and folders begin; two are what Synology and macOS add, with pictures in them."""
LONGEST_PATH = 3000
"""Bytes of names under a folder; systems end at 4096, with the folder."""
PassedOver = dict[str, list[Path]]
"""Files by what they are, a plural, that they were passed over for: "hidden files"."""


def nfc(text: str) -> str:
    """Text in Unicode's normal form C."""
    return unicodedata.normalize("NFC", text)


def name_of(file: str) -> str:
    """The name of a file whose path is relative to its folder, with "/"."""
    return nfc(file.rpartition(".")[0] or file)


class Folders:
    """Files that are there, by paths whose characters may be composed in another way; each folder is listed once."""

    def __init__(self):
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path | None:
        """The file or folder of this path, or None where there is none."""
        if path.exists() or path == path.parent:
            return path
        above = self.find(path.parent)
        if above is None or not above.is_dir():
            return None
        if above not in self._names:
            self._names[above] = {nfc(entry.name): entry.name for entry in _entries(above)}
        name = self._names[above].get(nfc(path.name))
        return None if name is None else above / name


def inside(name: str, what: str) -> str:
    """A relative path as it came.

    Raises:
        ValueError: it is empty, absolute or goes upwards, so that it could leave its folder, or no system has such a
            name; begins with `what`.
    """
    path = Path(name)
    try:
        lengths = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:  # half a character, as JSON can have
        lengths = [LONGEST_PATH + 1]
    if "\0" in name or max(lengths, default=0) > LONGEST_NAME or sum(lengths) > LONGEST_PATH:
        rule = f"must be a path of names of at most {LONGEST_NAME} bytes, {LONGEST_PATH} in all, without a null byte"
        raise ValueError(f"{what}: {rule}, got {name!r:.60}")
    if not name or path.is_absolute() or name.startswith("/") or ".." in path.parts:
        raise ValueError(f"{what}: must be a relative path that does not go upwards, got {name!r}")
    return name


def require_folder(folder: Path, hint: str = "") -> None:
    """
    Raises:
        ValueError: there is no such folder; ends with `hint`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a folder, got {'a file' if folder.exists() else 'nothing there'}{hint}")


def find_files(
    folder: Path,
    suffixes: tuple[str, ...],
    *,
    nested: bool = True,
    leave: Callable[[Path], str | None] = lambda folder: None,
) -> tuple[dict[Path, str], PassedOver]:
    """Files of a folder that have one of these suffixes, each with its name, sorted by it; and what was passed over.

    Links are followed, to folders too, but each folder is read once, those that are no links first: one that is met
    again is passed over. So a loop of links ends.

    Args:
        folder: where to look.
        suffixes: in lower case, with the dot; a file's own may be in capitals.
        nested: whether to look into sub-folders.
        leave: sub-folder -> what it is that it is passed over for, or None.

    Raises:
        ValueError: a missing folder, or one that cannot be read.
    """
    require_folder(folder)
    found, passed_over = {}, {}
    seen, folders, links = set(), [(folder, "")], []
    while folders or links:
        here, prefix = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(here)
        if real in seen:
            passed_over.setdefault("links to folders met before", []).append(here)
            continue
        seen.add(real)
        for entry in _entries(here):
            path, what = here / entry.name, None
            if entry.name.startswith(HIDDEN):
                what = "hidden files or folders"
            elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
                if not nested:
                    continue
                what = leave(path)
                if what is None:
                    (links if entry.is_symlink() else folders).append((path, f"{prefix}{entry.name}/"))
            elif entry.name.lower().endswith(suffixes):
                found[path] = name_of(prefix + entry.name)
            else:
                what = f"files of other suffixes than {' '.join(suffixes)}"
            if what:
                passed_over.setdefault(what, []).append(path)
    return dict(sorted(found.items(), key=lambda item: (item[1], nfc(item[0].name)))), passed_over


def by_name(folder: Path, files: Mapping[Path, str], what: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by their names, in the order given.

    Raises:
        ValueError: none, or two of one name.
    """
    if not files:
        raise ValueError(f"{folder}: must hold {what} ({' '.join(suffixes)}), got none")
    named: dict[str, Path] = {}
    for path, name in files.items():
        other = named.setdefault(name, path)
        if other != path:
            came = other.relative_to(folder).as_posix()
            raise ValueError(f"{path}: must be the only {name} beside its suffix, got {came} too")
    return named


def files_by_name(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """Files of a folder and its sub-folders by name, sorted; errors as of `find_files` and `by_name`."""
    return by_name(folder, find_files(folder, suffixes)[0], what, suffixes)


def places(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Of each file something that is equal for two paths to it: through links to folders, or composed differently."""
    real = cache(os.path.realpath)
    return [(real(file.parent), nfc(file.name)) for file in files]


def sentences(folder: Path, passed_over: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """What was passed over in a folder, to be read: one sentence a reason, with the number and one example."""
    return tuple(
        f"{folder}: {what} are passed over ({len(paths)}, such as {min(paths).relative_to(folder).as_posix()})"
        for what, paths in sorted(passed_over.items())
    )


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder}: must be a readable folder, got {error}") from error
