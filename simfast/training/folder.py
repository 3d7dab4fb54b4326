"""The folder of a run: a new one for a new run, and gone again where the run came to nothing."""

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simfast.config import Config
from simfast.models.checkpoint import BEST, LAST, PREVIOUS
from simfast.runtime import distributed
from simfast.runtime.lock import NAME as LOCK
from simfast.runtime.lock import locked

# What a run's folder may keep of it, each of which may be all that is left, and what --resume takes there, if anything.
WORK = {LAST: "", "stage1": "", PREVIOUS: PREVIOUS, BEST: BEST, "result.json": None}
# What a run writes before its first step.
BEGINNINGS = {"log.txt", "config.yaml", "metrics.jsonl", "tensorboard"}
# What it writes whole or not at all: what a killed one may have left of it has this name and ".part".
HALF_WRITTEN = (*("*.pt", "panel-*.png", "config.yaml", "metrics.jsonl", "result.json", "curve.png", "engines.json"),)


@dataclass
class RunFolder:
    """
    Attributes:
        path: where it is.
        command: that of the command, which --resume is given to go on: of both stages, where this is one of them.
        begun: to be set once a step is done, whose traces are to stay whatever comes.
        received: to be set to the number of a signal that came too late to stop the run before its end; 0: none.
    """

    path: Path
    command: Path
    begun: bool = False
    received: int = 0


@contextlib.contextmanager
def run_folder(config: Config, command: Path | None = None) -> Iterator[RunFolder]:
    """Context of a run, or of both stages, with the folder to write to; a new run never writes into one that holds a
    run already, and no run into one that another one is writing to. What one that was killed left half-written is
    removed.

    Where the context ends by an error or a signal before a step is done, what it has begun to write is removed, and the
    folder with it, as far as they were not there before. Checkpoints, pseudo labels and all else stay.

    Args:
        config: the run's settings.
        command: the folder of both stages, for one of them.

    Raises:
        ValueError, OSError: naming the folder.
    """
    with contextlib.ExitStack() as lock:
        path, made, there = distributed.on_lead(_make, config, lock)
        folder = RunFolder(path, command or path)
        try:
            yield folder
        except BaseException:
            if not folder.begun and distributed.is_lead():
                _remove(path, there)
                lock.close()
                _remove_empty(made)
            raise


def _make(config: Config, lock: contextlib.ExitStack) -> tuple[Path, list[Path], set[str]]:
    """The folder, those that had to be made for it, from the inside out, and what it holds already. It is locked, for
    as long as `lock` is open."""
    out = config.out
    if out is not None:
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        _make_folder(out)
        try:
            lock.enter_context(locked(out, "out" if config.resume is None else "resume"))
            if config.resume is None:
                _require_no_run(out)
        except BaseException:
            _remove_empty(made)
            raise
        for name in HALF_WRITTEN:
            for path in out.glob(f"{name}.part"):
                path.unlink()
        return out, made, {path.name for path in out.iterdir()}
    numbers = itertools.count(1)
    while True:
        out = Path("runs") / f"{config.preset}-{config.row}-{next(numbers)}"
        made = [folder for folder in (out, out.parent) if not folder.exists()]
        _make_folder(out.parent)
        with contextlib.suppress(FileExistsError):  # another run may begin at the same moment, and take this one
            out.mkdir(parents=True)
            lock.enter_context(locked(out, "out"))
            return out, made, {LOCK}


def _make_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: something else is in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        there = Path(error.filename)
        what = "a link that leads nowhere" if there.is_symlink() else "a file"
        raise ValueError(f"out: {there} must be a folder or nothing yet, got {what}; choose another --out") from error


def _require_no_run(out: Path) -> None:
    """
    Raises:
        ValueError: the folder keeps something of a run.
    """
    there = next((name for name in WORK if (out / name).exists()), None)
    if there is not None:
        goes_on = "" if WORK[there] is None else f"continue it with --resume {out / WORK[there]}, or "
        raise ValueError(f"out: {out} holds a run already ({there}); {goes_on}choose another")


def _remove(path: Path, there: set[str]) -> None:
    new = {entry.name for entry in path.iterdir()} - there
    if not new <= BEGINNINGS:
        return
    for name in new:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # something is in it, perhaps another run by now
            folder.rmdir()
