"""One file with everything a run needs to continue bit for bit, and a checksum of it all."""

import os
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from simfast.models.formats import described
from simfast.runtime.files import checksum, replacing, unfinished

FORMAT = "simfast"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
# torch.save writes a zip archive, whose comment is the last thing in it: the checksum of all before it.
COMMENT = b"simfast blake2b "
COMMENT_BYTES = len(COMMENT) + 32
# What a run's checkpoint says beside its networks' state: what kind of value each is, in words too.
OF_A_RUN: dict[str, tuple[Any, str]] = {
    "step": (int, "the steps done"),
    "last": (dict | None, "a row of metrics or None"),
    "best": (dict | None, "a row of metrics or None"),
    "config": (dict, "the settings"),
    "convention": (str, "bgr or rgb"),
    "model": (dict, "tensors by name"),
    "optimizer": (dict, "the optimiser's state"),
    "random": (dict, "the states of torch's generators"),
    "seconds": (int | float, "the time taken"),
    "processes": (int, "how many trained together"),
    "precision": (str, "the precision of the networks"),
    "network": (dict, "what network it is"),
    "look_due": (bool, "whether an evaluation was missed"),
    "data": (dict, "what the data were"),
    "places": (dict, "where the data were"),
    "bad_files": (dict, "bad files by name"),
    "losses": (dict, "the losses that no row of metrics has yet"),
}
# Those that came later.
LATER = {"seconds", "processes", "precision", "network", "look_due", "data", "places", "bad_files", "losses"}
# Of the matching, whose rings alone older ones have.
NOT_IN_OLDER = {"_extra_state"}
# Of an optimiser's groups, what depends on torch's version and is set anew.
SET_BY_TORCH = {"maximize", "foreach", "differentiable", "fused", "capturable", "decoupled_weight_decay", "name"}


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
            file.flush()
            os.fsync(file.fileno())  # before, as this may fail
            _name_too(path, path.with_name(previous))


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of ours, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} is not a file{_spare(path)}")
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"checkpoint: {path} must have format {FORMAT!r}, got {found!r}")
    return state


def load_run(path: Path) -> dict[str, Any]:
    """What a run saved to go on from, with all that every part of the product reads of it; the networks' own state is
    for `require_like`.

    Raises:
        As `load`; ValueError too where a key is missing or of another type.
    """
    state = load(path)
    for key, (kind, what) in OF_A_RUN.items():
        if key not in state:
            if key in LATER:
                continue
            raise ValueError(f"checkpoint: {path} must have the key {key!r}, {what}, to go on from, got none")
        if not isinstance(state[key], kind) or isinstance(state[key], bool) != (kind is bool):
            raise ValueError(f"checkpoint: {path}: {key!r} must be {what}, got {shown(state[key])}")
    if state["step"] < 0 or not all(isinstance(key, str) for key in state["config"]):
        raise ValueError(f"checkpoint: {path}: 'step' must be 0 or more and 'config' settings by name")
    for key in ("last", "best"):
        row = state[key]
        if row is not None and not (type(row.get("step")) is int and isinstance(row.get("miou", ""), float | None)):
            raise ValueError(f"checkpoint: {path}: {key!r} must be a row of metrics with step and miou, got {row!r}")
    if (losses := state.get("losses")) and not _are_losses(losses, state["step"], state.get("processes", 1)):
        rule = "'losses' must be sums of each process, by loss, since an earlier step"
        raise ValueError(f"checkpoint: {path}: {rule}, got {shown(losses)}")
    for name in ("cpu", "cuda"):
        found = state["random"].get(name)
        states = found if name == "cuda" and isinstance(found, list) else [found]
        if any(not isinstance(one, Tensor) or one.dtype != torch.uint8 for one in states):
            raise ValueError(f"checkpoint: {path}: 'random' must hold states of generators, got {name} {shown(found)}")
    return state


def _are_losses(found: dict[str, Any], step: int, processes: int) -> bool:
    since, sums = found.get("since"), found.get("sums")
    known = type(since) is int and 0 <= since < step and isinstance(found.get("scale"), float | None)
    return known and isinstance(sums, dict) and all(_are_floats(values, processes) for values in sums.values())


def _are_floats(found: Any, number: int) -> bool:
    return isinstance(found, list) and len(found) == number and all(type(value) is float for value in found)


def require_like(found: Any, wanted: Any, where: str) -> None:
    """
    Args:
        found: a part of a checkpoint.
        wanted: what the networks that it is for have in its place: dicts, lists, tensors and plain values.
        where: the file, and the keys that lead there.

    Raises:
        ValueError: a key that is missing or not known, a tensor of another shape or kind, a value of another type.
    """
    if isinstance(wanted, Tensor) and wanted.dim() == 0 and wanted.is_floating_point() and type(found) in (int, float):
        return  # as older checkpoints have a learning rate
    if isinstance(wanted, Tensor):
        kind = "floating" if wanted.is_floating_point() else str(wanted.dtype).removeprefix("torch.")
        like = isinstance(found, Tensor) and found.shape == wanted.shape
        like = like and (found.is_floating_point() if kind == "floating" else found.dtype == wanted.dtype)
        if not like:
            raise ValueError(f"{where}: must be a {kind} tensor {list(wanted.shape)}, got {shown(found)}")
    elif isinstance(wanted, dict):
        if not isinstance(found, dict):
            raise ValueError(f"{where}: must be a mapping, got {shown(found)}")
        for key in (key for key in found if key not in wanted and key not in SET_BY_TORCH):
            raise ValueError(f"{where}: must have {len(wanted)} keys, got {key!r}, which is not known")
        for key in (key for key in wanted if key in found or key not in SET_BY_TORCH | NOT_IN_OLDER):
            if key not in found:
                raise ValueError(f"{where}: must have the key {key!r}, got none among {len(found)}")
            require_like(found[key], wanted[key], f"{where}: {key}")
    elif isinstance(wanted, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(wanted):
            raise ValueError(f"{where}: must be a list of {len(wanted)}, got {shown(found)}")
        for i, pair in enumerate(zip(found, wanted, strict=True)):
            require_like(*pair, f"{where}: {i}")
    elif isinstance(wanted, int | float) and type(found) not in (int, float, bool):
        raise ValueError(f"{where}: must be a number, got {shown(found)}")
    elif isinstance(wanted, str) and not isinstance(found, str):
        raise ValueError(f"{where}: must be a string, got {shown(found)}")


def shown(value: Any) -> str:
    """What a value is, for an error."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return f"{type(value).__name__} {value!r:.40}"


def read(path: Path) -> Any:
    """What a file of torch.save holds, on the CPU.

    Raises:
        ValueError: it is none, is damaged, or holds more than tensors and plain values.
    """
    with open(path, "rb") as file:
        _require_stored(path, file)
        _require_undamaged(path, file)
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a pickle that it does not like, which the error is about
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has no one exception for a file it cannot read
            # Not its text, which advises to trust the file.
            rule = "must be a whole file of torch.save with nothing but tensors and plain values"
            raise ValueError(f"{path}: {rule}, got {described(path, error)}{_spare(path)}") from error


def _require_stored(path: Path, file: BinaryIO) -> None:
    """
    Raises:
        ValueError: a zip archive with compressed parts, which torch.save does not write: few bytes may become many.
    """
    try:
        packed = [part for part in zipfile.ZipFile(file).infolist() if part.compress_type != zipfile.ZIP_STORED]
    except Exception:  # no archive, or a damaged one, of which is said elsewhere
        return
    if packed:
        error = ValueError(f"{packed[0].filename!r} compressed")
        rule = "must be as torch.save writes it, without compression"
        raise ValueError(f"{path}: {rule}, got {described(path, error)}")


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
        raise ValueError(f"{path}: must be as it was written, got a damaged file, of another checksum{_spare(path)}")


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
    of_stage1 = f" (of its stages {first} alone has one)" if (first / path.name).is_file() else ""
    return f"no {path}{of_stage1}{_spare(path)}"


def _spare(path: Path) -> str:
    """Which other checkpoint of a run there is, as the end of an error about this one."""
    others = {LAST: (PREVIOUS, BEST), BEST: (LAST, PREVIOUS)}.get(path.name, ())
    there = [path.with_name(name) for name in others if path.with_name(name).is_file()]
    return f"; {there[0]} is there, which may be given in its place" if there else ""


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
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
    finally:  # an error, or both names were this file's already, and nothing is moved
        temporary.unlink(missing_ok=True)
