"""One file with everything a run needs to continue bit for bit."""

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = "simfast"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the file of that name is replaced whole or not at all.

    Args:
        path: where to.
        state: tensors and plain Python values only.
    """
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT} | state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of ours.
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
        ValueError: it is none, is cut short, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no one exception for a file it cannot read
        # Not its text, which advises to trust the file.
        rule = "must be a whole file of torch.save with nothing but tensors and plain values"
        raise ValueError(f"{path}: {rule}, got {type(error).__name__}") from error


def resolve(path: Path, name: str = "last.pt", stage: int = 2) -> Path:
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
