"""One file with everything a run needs to continue bit for bit, and a checksum of it all."""

import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from simfast.models.formats import described
from simfast.runtime.files import checksum, replacing, unfinished

FORMAT = "simfast"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
# torch.save writes a zip archive, whose comment is the last thing in it: the checksum of all before it.
COMMENT = b"simfast blake2b "
COMMENT_BYTES = len(COMMENT) + 32


def save(path: Path, state: dict[str, Any], previous: str | None = None) -> None:
    """Write a checkpoint; the file of that name is replaced whole or not at all.

    Args:
        path: where to.
        state: tensors and plain Python values only.
        previous: name in the same folder that the file there was gets; None: it is gone.

    Raises:
        OSError: what writing raises; the files are as they were.
    """
    with replacing(path) as file:
        torch.save({"format": FORMAT} | state, file)
        file.seek(-2, os.SEEK_END)  # how long the comment is
        file.write(COMMENT_BYTES.to_bytes(2, "little"))
        file.seek(0)
        digest = checksum(file)
        file.write(COMMENT + digest.encode())
        if previous is not None and path.exists():
            _name_too(path, path.with_name(previous))


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of ours, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} is not a file")
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"checkpoint: {path} must have format {FORMAT!r}, got {found!r}")
    return state


def read(path: Path) -> Any:
    """What a file of torch.save holds, on the CPU.

    Raises:
        ValueError: it is none, is damaged, or holds more than tensors and plain values.
    """
    with open(path, "rb") as file:
        _require_undamaged(path, file)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has no one exception for a file it cannot read
            # Not its text, which advises to trust the file.
            rule = "must be a whole file of torch.save with nothing but tensors and plain values"
            raise ValueError(f"{path}: {rule}, got {described(path, error)}") from error


def _require_undamaged(path: Path, file: BinaryIO) -> None:
    """
    Raises:
        ValueError: a checkpoint of ours, or another zip archive of torch.save, in which a bit is not as it was written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - COMMENT_BYTES - 22))
    tail = file.read()
    file.seek(0)
    length, end = COMMENT_BYTES.to_bytes(2, "little"), tail.rfind(b"PK\x05\x06")
    # Any one of these is left where a bit was flipped, or the end is cut off.
    lengths = (tail[-COMMENT_BYTES - 2 : -COMMENT_BYTES], tail[end + 20 : end + 22] if end >= 0 else b"")
    if COMMENT in tail or length in lengths:
        whole = tail[-COMMENT_BYTES:] == COMMENT + checksum(file, size - COMMENT_BYTES).encode()
    elif zipfile.is_zipfile(file):
        try:
            whole = zipfile.ZipFile(file).testzip() is None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError):
            whole = False
    else:
        return
    if not whole:
        spare = {LAST: PREVIOUS, BEST: LAST}.get(path.name)
        instead = spare and path.with_name(spare)
        remedy = f"; {instead} is there, too" if instead and instead.is_file() else ""
        raise ValueError(f"{path}: must be as it was written, got a damaged file, of another checksum{remedy}")


def resolve(path: Path, name: str = LAST, stage: int = 2) -> Path:
    """The checkpoint meant: the file itself, or the one of that name in a run folder; of both stages, that of `stage`.

    It may be missing: `missing` says so.
    """
    if not path.is_dir():
        return path
    of_stage = path / f"stage{stage}" / name
    return of_stage if of_stage.is_file() else path / name


def missing(path: Path) -> str:
    """What came in place of the checkpoint `path`, for an error: none, or perhaps stage 1's alone."""
    first = path.parent / "stage1"
    return f"no {path}" + (f" (of its stages {first} alone has one)" if (first / path.name).is_file() else "")


def random_state() -> dict[str, Any]:
    """The states of torch's own generators, CPU and GPUs."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any]) -> None:
    """Put `random_state` back; GPU states only where as many GPUs are seen as then."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _name_too(path: Path, other: Path) -> None:
    """A file gets a second name, from which another file is gone then."""
    temporary = unfinished(other)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, other)
