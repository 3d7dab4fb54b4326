"""Whether two folders hold the same results, bit for bit, whatever was in between."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

# Of a run: how long it took, on what, with which code, and where. What it was begun with is compared by its results.
APART = {"seconds", "environment", "environments", "commit", "config", "places"}
# Said once more where a run was resumed, or of the way there.
NOT_COMPARED = ("log.txt", "console.txt", "config.yaml", "settings.yaml", "previous.pt")


def leftovers(folder: Path) -> list[str]:
    """What nothing that is finished leaves behind: unfinished files, locks."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith((".part", ".lock")))


def contents(folder: Path) -> dict[str, str]:
    """A hash by file of what it holds: tensors of checkpoints, rows of metrics, pixels; of other files, their bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "tensorboard" not in name.parts and path.name not in (*NOT_COMPARED, ".lock"):
            found[str(name)] = _digest(path)
    return found


def difference(found: Path, wanted: dict[str, str]) -> str | None:
    """What of a folder is not as it should be; None where all is.

    Args:
        found: the folder.
        wanted: `contents` of the folder of an uninterrupted run.
    """
    if left := leftovers(found):
        return f"left behind: {left}"
    here = contents(found)
    if missing := sorted(wanted.keys() - here.keys()):
        return f"missing: {missing}"
    if more := sorted(here.keys() - wanted.keys()):
        return f"more than an uninterrupted run has: {more}"
    if other := [name for name in wanted if here[name] != wanted[name]]:
        return f"other content: {other}"
    return None


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        if path.suffix == ".pt":
            _add(digest, torch.load(path, map_location="cpu", weights_only=True))
        elif path.suffix == ".jsonl":
            _add(digest, [json.loads(line) for line in path.read_text().splitlines()])
        elif path.suffix == ".json":
            _add(digest, json.loads(path.read_text()))
        elif path.suffix == ".yaml":
            _add(digest, yaml.safe_load(path.read_text()))
        else:
            digest.update(path.read_bytes())
    except Exception as error:  # whatever a broken file is to its library
        return f"not to be read, {error!r:.200}"
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, dict):
        for key in sorted(value.keys() - APART, key=repr):
            digest.update(repr(key).encode() + b"{")
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            digest.update(b"[")
            _add(digest, one)
    elif isinstance(value, torch.Tensor):
        array = value.detach().contiguous().flatten().view(torch.uint8).numpy() if value.numel() else np.empty(0)
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(array.tobytes())
    else:
        digest.update(repr(value).encode())
