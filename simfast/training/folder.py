"""The folder of a run: a new one for a new run, and gone again where the run came to nothing."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simfast.config import Config
from simfast.runtime import distributed

# What a run writes before its first step.
BEGINNINGS = {"log.txt", "config.yaml", "metrics.jsonl", "tensorboard"}


@dataclass
class RunFolder:
    """
    Attributes:
        path: where it is.
        begun: to be set once a step is done, whose traces are to stay whatever comes.
    """

    path: Path
    begun: bool = False


@contextlib.contextmanager
def run_folder(config: Config) -> Iterator[RunFolder]:
    """Context of a run, or of both stages, with the folder to write to; a new run never writes into one that holds a
    run already.

    Where the context ends by an error or a signal before a step is done, what it has begun to write is removed, and the
    folder with it, as far as they were not there before. Checkpoints, pseudo labels and all else stay.

    Raises:
        ValueError, OSError: naming the folder.
    """
    path, made, there = distributed.on_lead(_make, config)
    folder = RunFolder(path)
    try:
        yield folder
    except BaseException:
        if not folder.begun and distributed.is_lead():
            _remove(path, made, there)
        raise


def _make(config: Config) -> tuple[Path, list[Path], set[str]]:
    """The folder, those that had to be made for it, from the inside out, and what it holds already."""
    out = config.out
    if out is not None:
        if config.resume is None and any((out / name).exists() for name in ("last.pt", "stage1")):
            raise ValueError(f"out: {out} holds a run already; continue it with --resume {out}, or choose another")
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        return out, made, {path.name for path in out.iterdir()}
    numbers = itertools.count(1)
    while True:
        out = Path("runs") / f"{config.preset}-{config.row}-{next(numbers)}"
        made = [folder for folder in (out, out.parent) if not folder.exists()]
        with contextlib.suppress(FileExistsError):  # another run may begin at the same moment, and take this one
            out.mkdir(parents=True)
            return out, made, set()


def _remove(path: Path, made: list[Path], there: set[str]) -> None:
    new = {entry.name for entry in path.iterdir()} - there
    if not new <= BEGINNINGS:
        return
    for name in new:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    for folder in made:
        with contextlib.suppress(OSError):  # another run is in it by now
            folder.rmdir()
