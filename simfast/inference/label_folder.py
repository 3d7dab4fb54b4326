"""A folder of pseudo labels: what in it is whole, and what is known to be ours."""

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simfast.data.listing import inside
from simfast.data.predictions import PROGRESS_FILE, THRESHOLDS_FILE
from simfast.models import checkpoint
from simfast.runtime.files import checksum, replacing, write_text

log = logging.getLogger("simfast")

BEGINNING = b'{\n "images"'
"""Of our thresholds.json."""


def require_labels(folder: Path, class_names: Sequence[str]) -> None:
    """
    Args:
        folder: of `simfast.inference.pseudo_labels.make_pseudo_labels`.
        class_names: of the run that is to train on them.

    Raises:
        ValueError: the folder is not complete, a map is not as it was made, or they are of other classes.
    """
    path = folder / THRESHOLDS_FILE
    if not path.exists():
        raise ValueError(f"pseudo_labels: {folder} must be complete, got no {THRESHOLDS_FILE}")
    result = _read_thresholds(path)
    theirs = list(result["classes"])
    if theirs != list(class_names):
        raise ValueError(
            f"pseudo_labels: {folder} must be of the run's classes ({', '.join(class_names)}), "
            f"got labels of {', '.join(theirs)}"
        )
    _require_unchanged(folder, result)


def finished_labels(
    out: Path, names: Sequence[str], fingerprint: str, class_names: Sequence[str]
) -> dict[str, Any] | None:
    """What a complete set says of itself; None where there is none, or a power loss has cut what it says.

    Raises:
        ValueError: it is of another network, data set or options; or a map is missing or not as it was made.
    """
    path = out / THRESHOLDS_FILE
    if not path.exists():
        return None
    try:
        result = _read_thresholds(path)
    except ValueError:
        if not _is_cut(path):
            raise
        return None
    if (result["fingerprint"], list(result["classes"])) != (fingerprint, list(class_names)):
        raise ValueError(
            f"{path}: must be of this network, data set and options, got another's; remove {out} to make them anew"
        )
    for name in names:
        if not map_path(out, name).is_file():
            raise ValueError(f"{map_path(out, name)}: must be there, as {path} says, got nothing; remove {out}")
    _require_unchanged(out, result)
    with contextlib.suppress(OSError):  # a read-only file system refuses it also where there is none
        (out / PROGRESS_FILE).unlink(missing_ok=True)
    return result


class Begun(NamedTuple):
    """How far the pseudo labels of a folder are."""

    histogram: Tensor
    """int64 [bins], of the images counted."""
    passed_over: dict[str, str]
    """The bad files that it passed over, and what is wrong with them."""
    lost: dict[str, str]
    """Those that it counted, and that were bad when their maps were to be made."""


def begin(out: Path, names: Sequence[str], fingerprint: str, bins: int, pixels: int) -> Begun:
    """What to go on with; a histogram of zeros where that is nothing, and then no map is left.

    Args:
        pixels: of an image.

    Raises:
        ValueError: maps that are not known to be ours.
    """
    path, cut = out / PROGRESS_FILE, out / THRESHOLDS_FILE
    maps = [p for p in (map_path(out, name) for name in names) if p.exists()]
    if cut.exists():
        log.warning("%s: must be what pseudo labels come with, got an end before its own; it is made anew", cut)
    if path.exists():
        try:
            state = checkpoint.load(path)
            if state["fingerprint"] == fingerprint:
                # Older versions wrote no bad files.
                begun = Begun(state["histogram"], state.get("bad_files", {}), state.get("lost_files", {}))
                _require_counted(path, begun, bins, pixels, len(names))
                cut.unlink(missing_ok=True)
                log.info("%s: going on where an earlier run stopped", out)
                return begun
            reason = "it is of another network, data set or options"
        except (OSError, ValueError, KeyError) as error:
            reason = str(error)
        log.warning("%s: beginning anew, what an earlier run left is of no use: %s", out, reason)
    elif maps and not cut.exists():
        raise ValueError(f"{maps[0]}: must not be there before its pseudo label is made; name another folder")
    for p in (*maps, path, cut):  # in this order: without the last two, maps would not be known to be ours
        p.unlink(missing_ok=True)
    return Begun(torch.zeros(bins, dtype=torch.int64), {}, {})


def save_begun(out: Path, fingerprint: str, begun: Begun) -> None:
    """Keeps what `begin` is to find.

    Raises:
        OSError: what writing raises.
    """
    histogram, passed_over, lost = begun
    state = {"fingerprint": fingerprint, "histogram": histogram.cpu(), "bad_files": passed_over, "lost_files": lost}
    checkpoint.save(out / PROGRESS_FILE, state)


def map_path(out: Path, name: str) -> Path:
    """Where the map of an image lies, under `out` whatever its name."""
    return out / inside(f"{name}.png", "dataset: names")


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """A label map that an earlier run wrote; None where there is none, or it is not whole."""
    try:
        with Image.open(path) as picture:
            picture.verify()
        with Image.open(path) as picture:
            return np.asarray(picture) if (picture.mode, picture.size) == ("L", size) else None
    except Exception:  # Pillow's decoders raise whatever they meet
        return None


def write_map(out: Path, name: str, label: np.ndarray) -> str:
    """Writes the map of an image, uint8 [H, W]; the checksum of its file."""
    path = map_path(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(label).save(file, format="PNG")
        file.seek(0)
        return checksum(file)


def map_checksum(out: Path, name: str) -> str:
    """The checksum of a map's file."""
    with map_path(out, name).open("rb") as file:
        return checksum(file)


def write_thresholds(out: Path, result: dict[str, Any]) -> None:
    """Writes thresholds.json, with a checksum of all it says."""
    content = result | {"checksum": _checksum_of(result)}
    write_text(out / THRESHOLDS_FILE, json.dumps(content, indent=1) + "\n")


def _checksum_of(result: dict[str, Any]) -> str:
    return checksum(io.BytesIO(json.dumps(result).encode()))


def _read_thresholds(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_bytes())
        expected = result.pop("checksum", None)  # older versions wrote none
        if expected is not None and expected != _checksum_of(result):
            raise ValueError("another checksum")
        result["fingerprint"], _require_figures(result)
        if any(not isinstance(word, str | None) for word in result.get("checksums", {}).values()):
            raise TypeError("checksums must be words")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        rule = "must be what pseudo labels come with"
        raise ValueError(f"{path}: {rule}, got {error!r}; remove {path.parent} to make them anew") from error
    return result


def _require_figures(result: dict[str, Any]) -> None:
    """
    Raises:
        KeyError, TypeError, AttributeError: what is said of a class is missing, or no number.
    """
    for name, said in result["classes"].items():
        for key in ("threshold", "median", "predicted_pixels", "kept_pixels", "kept_fraction"):
            if not isinstance(said[key], int | float | None) or isinstance(said[key], bool):
                raise TypeError(f"{key} of {name} must be a number")


def _is_cut(path: Path) -> bool:
    """Whether a thresholds.json that cannot be read is what a power loss leaves of one of ours."""
    content = path.read_bytes().rstrip(b"\0")
    if content.rstrip().endswith(b"\n}"):  # a whole one, in which somebody's editing went wrong
        return False
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(content)
        return False
    return content.startswith(BEGINNING) or BEGINNING.startswith(content)


def _require_unchanged(folder: Path, result: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: a map that is not, byte for byte, what was made; names it.
    """
    if "checksums" not in result:
        log.warning("%s: made by an older version, so that label maps that change pass unseen", folder)
    for name, expected in result.get("checksums", {}).items():
        if expected is None:  # changed by hand, and meant
            continue
        path = map_path(folder, name)
        remedy = f"remove {folder} to make all anew, or, if it is meant, write null for {name} and for checksum in "
        remedy += THRESHOLDS_FILE
        try:
            found = map_checksum(folder, name)
        except OSError as error:
            raise ValueError(f"{path}: must be the label map that was made, got {error}; {remedy}") from error
        if found != expected:
            raise ValueError(f"{path}: must be the label map that was made, got another checksum; {remedy}")


def _require_counted(path: Path, begun: Begun, bins: int, pixels: int, images: int) -> None:
    histogram, passed_over, lost = begun
    if (
        not isinstance(histogram, Tensor)
        or (histogram.dtype, tuple(histogram.shape)) != (torch.int64, (bins,))
        or histogram.min() < 0
        or not isinstance(passed_over, dict)
        or not isinstance(lost, dict)
        or (counted := int(histogram.sum())) % pixels
        or counted // pixels + len(passed_over) > images
    ):
        raise ValueError(f"{path}: must count the confidences of whole images, got something else")
