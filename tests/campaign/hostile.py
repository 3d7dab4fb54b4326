"""Checkpoints and weights of someone who means harm: nothing in them is ever executed, nothing fills the memory, and
one line says what came."""

import functools
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from .case import Case
from .world import World, slug

CANARY = "executed"
LIMIT_SECONDS = 60.0


class _Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _getattr_chain() -> bytes:
    """builtins.eval by the pickle's own operations."""
    return b"cbuiltins\neval\n(V__import__('os').system('touch " + CANARY.encode() + b"')\ntR."


def payloads(state: dict) -> dict[str, Callable[[], object]]:
    """Objects and pickles that do something where they are loaded, by name."""
    touch = f"touch {CANARY}"
    deep = functools.reduce(lambda inner, _: [inner], range(400), 1)
    return {
        "os.system": lambda: _Calls(os.system, touch),
        "os.system in a run's state": lambda: state | {"model": _Calls(os.system, touch)},
        "os.system as a key": lambda: {"format": "simfast", "config": {"out": _Calls(os.system, touch)}},
        "eval": lambda: _Calls(eval, f"__import__('os').system('{touch}')"),
        "exec": lambda: _Calls(exec, f"import os; os.system('{touch}')"),
        "open": lambda: _Calls(open, CANARY, "w"),
        "pathlib": lambda: state | {"out": _Calls(Path(CANARY).touch)},
        "torch.hub": lambda: _Calls(torch.load, "other.pt"),
        "a class": lambda: {"state_dict": _Calls(type, "X", (), {})},
        "deep": lambda: {"model": deep},
        "bytearray": lambda: _Calls(bytearray, 2**40),
        "a huge tensor": lambda: torch.zeros(1).expand(2**40),
        "a huge state": lambda: {"state_dict": {"conv1.weight": torch.zeros(1).expand(64, 2**20, 7, 7)}},
    }


COMMANDS = (
    *(["train", "--resume", "FILE"], ["evaluate", "FILE", "DATA"], ["predict", "FILE", "PICTURES", "--out", "out"]),
    *(["classes", "FILE"], ["train", "COMMON", "--weights", "FILE", "--out", "out"], ["diagnose", "FILE"]),
    *(
        ["pseudo-labels", "FILE", "--out", "out"],
        ["train", "COMMON", "--stage", "2", "--stage1", "FILE", "--out", "out"],
    ),
)
FORMS = ("torch.save", "old torch.save", "pickle", "pickle in a zip", "zip bomb", "many entries", "path in a zip")


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    rng, bad = case.rng, []
    for _ in range(6):
        form, argv = rng.choice(FORMS), _filled(rng.choice(COMMANDS), world)
        shutil.rmtree(case.work)
        case.work.mkdir()
        state = torch.load(world.folder / "kept" / slug("train") / "run/last.pt", weights_only=True)
        name, make = rng.choice(sorted(payloads(state).items()))
        path = case.work / "hostile.pt"
        _write(path, form, make)
        ended = case.run(argv, limit=LIMIT_SECONDS)
        # Empty, it is a network of nothing, or deep lists are plain values: then it may be refused later on.
        trouble = ended.trouble("hostile.pt", may_be=(1, 2))
        if (case.work / CANARY).exists() or (case.work.parent / CANARY).exists():
            trouble = "EXECUTED"
        if trouble:
            shutil.copy(path, case.folder / f"hostile-{len(bad)}.pt")
            bad.append(f"{name} as {form}, simfast {' '.join(argv[:2])}: {trouble}")
    return [("hostile files", 6, bad)]


def _write(path: Path, form: str, make: Callable[[], object]) -> None:
    if form in ("torch.save", "old torch.save"):
        torch.save(make(), path, _use_new_zipfile_serialization=form == "torch.save")
    elif form == "pickle":
        thing = make()
        path.write_bytes(_getattr_chain() if isinstance(thing, torch.Tensor) else pickle.dumps(_plain(thing)))
    else:
        whole = io.BytesIO()
        torch.save({"model": {}}, whole)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data.pkl"):
                    content = _getattr_chain() if form == "pickle in a zip" else content
                    content = b"(" * 2**24 if form == "zip bomb" else content
                new.writestr(name, content)
            if form == "many entries":
                for number in range(20_000):
                    new.writestr(f"archive/data/{number}", b"")
            if form == "path in a zip":
                new.writestr(f"../{CANARY}", b"")
                new.writestr("/tmp/../archive/data/0", b"")


def _plain(thing: object) -> object:
    """Without tensors, which plain pickles carry by other means."""
    return (
        {"model": thing} if not isinstance(thing, dict) else {k: v for k, v in thing.items() if k in ("model", "out")}
    )


def _filled(argv: list[str], world: World) -> list[str]:
    filled = {
        "FILE": ["hostile.pt"],
        "PICTURES": [str(world.data / "pictures")],
        "COMMON": [*world.common, "--workers", "0", "--steps", "1"],
        "DATA": ["--target", "folder", "--target-root", str(world.data / "target"), "--device", "cpu"],
    }
    return [part for one in argv for part in filled.get(one, [one])]
