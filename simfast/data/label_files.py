"""Where the label map of an image lies: in a folder under its name, by a pattern with braces, or by rules "A -> B"."""

import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from simfast.data.listing import Folders, PassedOver, nfc, places, require_folder
from simfast.data.pictures import IMAGE_SUFFIXES, LABEL_SUFFIXES

OPTION = "label_files (--source-labels, --target-labels, --eval-labels)"
FIELDS = ("dir", "stem", "name", "parent", "root")
ARROW = "->"


class LabelFiles:
    """The label maps of images; `simfast.data.open_dataset` says what patterns there are.

    Attributes:
        pattern: as it was given.
        folder: the folder that they lie in under the images' names; None where a pattern or rules say the place.
    """

    def __init__(self, pattern: str, images: Path, root: Path | None):
        """
        Args:
            pattern: a folder, a pattern with braces, or rules "A -> B".
            images: the folder that the images' names begin at.
            root: the folder that relative patterns begin at and that rules leave alone; None: the one that `images`
                lies in, or for rules the closest above under which all of them apply and lead to a label map. A folder
                that holds the label maps may also be beside `images` (or in it, where it has another name), or in the
                working folder.

        Raises:
            ValueError: an unknown field, or a rule of another form; names the option.
        """
        self.pattern, self.root = pattern, images.parent if root is None else root
        self.folder: Path | None = None
        self._rules: list[tuple[str, str]] = []
        self._bases = [(self.root, any)]
        if root is None:  # no further up than needed: an "images" in there may not be meant
            above = Path(os.path.abspath(self.root))
            self._bases = [*((base, all) for base in (above, *above.parents)), (above, any)]
        self._folders, self._listed = Folders(), cache(_label_maps)
        if not pattern.strip():
            raise ValueError(f"{OPTION}: must be a folder, a pattern or rules, got {pattern!r}")
        if ARROW in pattern:
            self._rules = [_rule(rule, pattern) for rule in pattern.split(",")]
        elif "{" in pattern or "}" in pattern:
            _check_fields(pattern)
        else:
            part = images.parent if images.name == "images" else images
            folders = (part / pattern, self.root / pattern, Path(pattern))
            self.folder = next((folder for folder in folders if folder.is_dir()), folders[0])

    def require(self) -> None:
        """
        Raises:
            ValueError: the label maps are to lie in a folder, and it is not there; names the option.
        """
        if self.folder is not None:
            rule = 'a folder beside the images, in the root or here, a pattern as "{dir}/{stem}_L.png", or "A -> B"'
            require_folder(self.folder, f"; {OPTION} must be {rule}")

    def expected(self, image: Path, name: str) -> Path | None:
        """Where the label map of an image has to be, if perhaps with another suffix; None where no rule applies."""
        return next(self._possible(image, name), None)

    def _possible(self, image: Path, name: str) -> Iterator[Path]:
        """Where the label map of an image may be, the likeliest place first."""
        if self.folder is not None:
            yield self.folder / f"{name}.png"
            return
        if self._rules:
            yield from filter(None, (self._replaced(image, base, enough) for base, enough in self._bases))
            return
        folders = {"dir": image.parent, "root": self.root}
        fields = {key: Path(os.path.abspath(path)).as_posix() for key, path in folders.items()}
        fields |= {"stem": image.stem, "name": name, "parent": name.rpartition("/")[0] or "."}
        # Without "..", which would go up from where a link leads to.
        yield Path(os.path.normpath(self.root / self.pattern.format(**fields)))

    def _replaced(self, image: Path, base: Path, enough: Callable[[Iterable[bool]], bool]) -> Path | None:
        """By the rules, which leave `base` alone; None where not enough of them apply."""
        path, applies = nfc(Path(os.path.relpath(image, base)).as_posix()), []
        for old, new in self._rules:
            applies.append(old in path)
            path = path.replace(old, new)
        return Path(os.path.normpath(base / path)) if enough(applies) else None

    def find(self, image: Path, name: str) -> Path | None:
        """The label map of an image, or None where there is none.

        Raises:
            ValueError: two that differ in their suffix, where no pattern says which.
        """
        return next(filter(None, map(self._at, self._possible(image, name))), None)

    def _at(self, path: Path) -> Path | None:
        """`find` in one place."""
        folder = self._folders.find(path.parent)
        if folder is None or not folder.is_dir():
            return None
        has_suffix = path.suffix.lower() in (*IMAGE_SUFFIXES, *LABEL_SUFFIXES)
        found = self._listed(folder).get(nfc(path.stem if has_suffix else path.name), [])
        if self.folder is None and (exact := [file for file in found if nfc(file.name) == nfc(path.name)]):
            return exact[0]
        if len(found) > 1:
            raise ValueError(f"{found[0]}: must be the only {path.stem} beside its suffix, got {found[1].name} too")
        return found[0] if found else None


def pair_up(images: Mapping[Path, str], labels: LabelFiles) -> tuple[dict[Path, Path | None], PassedOver]:
    """Images with their label maps, None where there is none; and what is no image, by what it is.

    The label map of another image is no image; nor is, where there are rules, a picture to which none applies.

    Args:
        images: file -> name.
    """
    found = {image: labels.find(image, name) for image, name in images.items()}
    own = dict(zip(found, places(found), strict=True))
    labelled = [image for image, label in found.items() if label]
    theirs = zip(labelled, places(found[image] for image in labelled), strict=True)
    taken = {there for image, there in theirs if there != own[image]}
    pairs, passed_over = {}, {}
    for image, label in found.items():
        what = None
        if own[image] in taken:
            what = "label maps of other pictures"
        elif labels.expected(image, images[image]) is None:
            what = f"pictures to which {labels.pattern!r} does not apply"
        if what:
            passed_over.setdefault(what, []).append(image)
        else:
            pairs[image] = label
    return pairs, passed_over


def require_own(pairs: Mapping[Path, Path | None], what: str) -> None:
    """
    Raises:
        ValueError: an image that is its own label map, or a label map that two images have; begins with `what`.
    """
    labelled = [image for image, label in pairs.items() if label]
    maps = [pairs[image] for image in labelled]
    owners: dict[tuple[str, str], Path] = {}
    for image, label, own, there in zip(labelled, maps, places(labelled), places(maps), strict=True):
        other = owners.setdefault(there, image)
        if own == there or other != image:
            came = f"{image} for itself" if own == there else f"{label} for {other} and for {image}"
            raise ValueError(f"{what} must lead to a label map of its own for each image, got {came}")


def _label_maps(folder: Path) -> dict[str, list[Path]]:
    """Files of a folder that can be label maps, by their names without suffix."""
    found: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        if Path(name).suffix.lower() in LABEL_SUFFIXES and not name.startswith("."):
            found.setdefault(nfc(Path(name).stem), []).append(folder / name)
    return found


def _rule(rule: str, pattern: str) -> tuple[str, str]:
    old, arrow, new = (part.strip() for part in rule.partition(ARROW))
    if not (old and arrow) or ARROW in new:
        raise ValueError(f'{OPTION}: a rule must be "A -> B", and rules have commas between, got {pattern!r}')
    return nfc(old), nfc(new)


def _check_fields(pattern: str) -> None:
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        fields = [(field, spec, to) for _, field, spec, to in string.Formatter().parse(pattern) if field is not None]
    except ValueError as error:
        raise ValueError(f"{OPTION}: braces must come in pairs, got {pattern!r}: {error}") from None
    for field, spec, conversion in fields:
        if field not in FIELDS or spec or conversion:
            raise ValueError(f"{OPTION}: must have no other fields than {known}, got {{{field}}} in {pattern!r}")
