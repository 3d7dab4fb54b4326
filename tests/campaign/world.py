"""What the cases share: data of a few small pictures, a trained run, and the programs that are interrupted, each with
what it leaves where nothing interrupts it. Made once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .case import Case
from .compare import contents

SIZE = 64
COUNTS = {("source", "train"): 6, ("target", "train"): 8, ("target", "val"): 2}


@dataclass
class Program:
    """A command that is to leave the same whatever came between.

    Attributes:
        argv: the command line.
        out: where it writes, in the folder that it runs in.
        resume: the command line that goes on, where it is another one.
        ready: what has to be there for that, in `out`.
    """

    argv: list[str]
    out: str
    resume: list[str] = field(default_factory=list)
    ready: tuple[str, ...] = ()

    def goes_on(self, work: Path) -> list[str]:
        """The command line that a user would give next."""
        return self.resume if any((work / self.out / name).exists() for name in self.ready) else self.argv


class World:
    """
    Attributes:
        folder: where all of it is.
        programs: by name.
    """

    def __init__(self, folder: Path):
        self.folder = folder = folder.resolve()
        self.data, self.trained = folder / "data", folder / "trained"
        self.parts = [
            *("--source", "folder", "--source-root", str(self.data / "source"), "--source-size", str(SIZE), str(SIZE)),
            *("--target", "folder", "--target-root", str(self.data / "target"), "--target-size", str(SIZE), str(SIZE)),
        ]
        self.common = [
            *("--preset", "gta5", "--arch", "resnet18", "--device", "cpu", *self.parts, "--flip"),
            *("--schedule-steps", "20", "--lr", "0.001", "--stuff-rows", "4", "--max-instances", "2"),
            # A checkpoint comes between two rows of losses, too.
            *("--log-every", "3", "--eval-every", "2", "--panel-images", "1"),
        ]
        run, pairs = ["--resume", "run"], ("last.pt", "config.yaml")
        one, two = (["train", *self.common, "--workers", n, "--steps", "6", "--out", "run"] for n in "02")
        both = ["train", *self.common, "--workers", "0", "--stage", "all", "--steps", "4", "--out", "run"]
        rows = ["--rows", "source-only", "aa+sim+ssl", "--steps", "2", "--workers", "0"]
        target = ["--target", "folder", "--target-root", str(self.data / "target"), "--target-size", "64", "64"]
        on_cpu = ["--device", "cpu", "--workers", "0"]
        self.programs = {
            "train": Program(one, "run", ["train", *run], ("last.pt",)),
            "train, 2 workers": Program(two, "run", ["train", *run], ("last.pt",)),
            "train --stage all": Program(both, "run", ["train", *run], pairs),
            "prepare": Program(["prepare", *self.parts, "--workers", "0", "--cache", "cache"], "cache"),
            "prepare, 2 workers": Program(["prepare", *self.parts, "--workers", "2", "--cache", "cache"], "cache"),
            "pseudo-labels": Program(
                ["pseudo-labels", str(self.trained), "--out", "labels", *target, *on_cpu], "labels"
            ),
            "ablate": Program(["ablate", *self.common, *rows, "--out", "ablation"], "ablation"),
            "predict": Program(
                ["predict", str(self.trained), str(self.data / "pictures"), "--out", "out", *on_cpu], "out"
            ),
            "evaluate --report": Program(
                ["evaluate", str(self.trained), "--report", "out/scores.json", *target, *on_cpu], "out"
            ),
        }

    def wanted(self, name: str) -> dict[str, str]:
        """What a program leaves, as `contents`."""
        return json.loads((self.folder / f"{slug(name)}.json").read_text())

    def seconds(self, name: str) -> float:
        """How long it took."""
        return json.loads((self.folder / "seconds.json").read_text())[name]

    def make(self, say: Callable[[str], None]) -> None:
        """Makes what is not there yet."""
        if not self.data.exists():
            fresh = self.folder / "data.fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            make_data(fresh)
            fresh.rename(self.data)
        if not (self.trained / "result.json").exists():
            say("training what the other programs need")
            shutil.rmtree(self.trained, ignore_errors=True)
            case = Case(self.folder / "first", 0)
            _done(case, ["train", *self.common, "--workers", "0", "--steps", "4", "--out", str(self.trained)])
        times = self.folder / "seconds.json"
        seconds = json.loads(times.read_text()) if times.exists() else {}
        for name, program in self.programs.items():
            if name not in seconds:
                say(f"{name}, uninterrupted")
                seconds[name] = self._reference(name, program)
                times.write_text(json.dumps(seconds))

    def _reference(self, name: str, program: Program) -> float:
        import time

        case = Case(self.folder / "first", name)
        begun = time.monotonic()
        _done(case, program.argv)
        seconds = time.monotonic() - begun
        found = contents(case.work / program.out)
        (self.folder / f"{slug(name)}.json").write_text(json.dumps(found, indent=1))
        keep = self.folder / "kept" / slug(name)
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(case.work, keep)
        return seconds


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _done(case: Case, argv: list[str]) -> None:
    ended = case.run(argv)
    if ended.status != 0:
        raise SystemExit(f"campaign: simfast {' '.join(argv)} must work where nothing interrupts it: {ended}")


def make_data(root: Path) -> None:
    """Blocky pictures whose colour tells the class, as the tests of whole runs have them; and pictures to label."""
    rng = np.random.default_rng(0)
    classes = np.array([0, 2, 10, 11, 13, 255], np.uint8)
    for (domain, split), count in COUNTS.items():
        for kind in ("images", "labels"):
            (root / domain / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(rng.choice(classes, (8, 8)), np.ones((8, 8), np.uint8))
            image = np.stack([label * 13, 255 - label, label * 7], -1) // (1 if domain == "source" else 2)
            Image.fromarray(label).save(root / domain / split / "labels" / f"{i}.png")
            Image.fromarray(image.astype(np.uint8)).save(root / domain / split / "images" / f"{i}.png")
    (root / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50 + i, 3), np.uint8)).save(root / f"pictures/{i}.png")
