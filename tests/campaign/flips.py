"""One bit is not as it was written: the file is refused by its name, or what comes of it is what comes of the whole
one. Silently, nothing else ever does."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from .case import Case
from .compare import contents
from .world import World, slug

# What is changed, of what a program left, and who reads it then: what it writes is compared.
READERS = {
    "last.pt": ("train", "run/last.pt", ["train", "--resume", "run", "--steps", "8"], "run"),
    "best.pt, predicted with": ("train", "run/best.pt", ["predict", "run", "PICTURES", "--out", "out"], "out"),
    "best.pt, evaluated": ("train", "run/best.pt", ["evaluate", "run", "--report", "out/scores.json"], "out"),
    "best.pt, of stage 1": ("train", "run/best.pt", ["pseudo-labels", "run", "--out", "out"], "out"),
    "cache, trained on": ("prepare", "cache/*/*.npy", ["train", "COMMON", "--cache", "cache", "--out", "out"], "out"),
    "cache, its index": (
        "prepare",
        "cache/*/index.json",
        ["train", "COMMON", "--cache", "cache", "--out", "out"],
        "out",
    ),
    "cache, checked": ("prepare", "cache/*/*.npy", ["check-data", "PARTS", "--cache", "cache"], None),
    "pseudo labels": ("pseudo-labels", "labels/*.png", ["train", "STAGE2", "--out", "out"], "out"),
    "thresholds.json": ("pseudo-labels", "labels/thresholds.json", ["train", "STAGE2", "--out", "out"], "out"),
    "thresholds.json, made again": ("pseudo-labels", "labels/thresholds.json", ["AGAIN"], "labels"),
    ".progress.pt": ("begun", "labels/.progress.pt", ["AGAIN"], "labels"),
}


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    title = list(READERS)[seed % len(READERS)]
    source, pattern, argv, out = READERS[title]
    argv = _filled(argv, world)
    _lay_out(source, world, case.work)
    wanted = _wanted(title, argv, out, world, source)
    path = case.rng.choice(sorted(case.work.glob(pattern)))
    data = bytearray(path.read_bytes())
    place, bit = case.rng.randrange(len(data)), case.rng.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    ended = case.run(argv)
    # What an index says of the data it was made from may be another thing: it is the part that has to be made anew.
    name = path.parent.name if path.name == "index.json" else path.name
    trouble = ended.trouble(name, may_be=(0, 1))
    if title == "cache, checked":  # it lists what it finds
        named = path.name in ended.out + ended.err
        trouble = None if ended.status == 1 and named else f"ended with {ended.status}: {ended.out[-300:]}{ended.err}"
    elif trouble is None and ended.status == 0 and contents(case.work / out) != wanted:
        trouble = "used without a word, to another result"
    said = f"bit {bit} of byte {place} of {len(data)} in {path.relative_to(case.work)}"
    return [(f"flipped bit: {title}", 1, [f"{said}: {trouble}"] if trouble else [])]


def _filled(argv: list[str], world: World) -> list[str]:
    labels = world.programs["pseudo-labels"].argv
    filled = {
        "PICTURES": [str(world.data / "pictures")],
        "COMMON": [*world.common, "--workers", "0", "--steps", "3"],
        "PARTS": world.parts,
        "STAGE2": [*world.common, *("--workers", "0", "--steps", "2", "--stage", "2", "--pseudo-labels", "labels")],
        "AGAIN": labels,
    }
    return [part for one in argv for part in filled.get(one, [one])]


def _lay_out(source: str, world: World, work: Path) -> None:
    """What a program left, or was about to."""
    kept = world.folder / "kept"
    if source != "begun":
        shutil.copytree(kept / slug(source), work, dirs_exist_ok=True)
        return
    begun = kept / "begun"
    if not begun.exists():
        _begin_labels(begun, world)
    shutil.copytree(begun, work, dirs_exist_ok=True)


def _begin_labels(begun: Path, world: World) -> None:
    """Pseudo labels of which thresholds are counted and some maps are there."""
    for _ in range(20):  # on a busy machine they may be finished before they can be stopped
        case = Case(begun.with_name(f"{begun.name}.{os.getpid()}"), 0)
        running = case.start(world.programs["pseudo-labels"].argv)
        labels = case.work / "labels"
        while not running.poll() and not list(labels.glob("*.png")):
            pass
        running.kill(9, group=True)
        running.wait()
        if (labels / ".progress.pt").exists():
            break
    else:
        raise RuntimeError("the pseudo labels were finished before they could be stopped, each time")
    for path in labels.glob("*.part"):
        path.unlink()
    with contextlib.suppress(OSError):  # another case has just made it, too
        os.rename(case.work, begun)
    shutil.rmtree(case.folder)


def _wanted(title: str, argv: list[str], out: str | None, world: World, source: str) -> dict[str, str] | None:
    """What comes of the whole file; made once."""
    if out is None:
        return None
    path = world.folder / "kept" / f"{slug(title)}.json"
    if not path.exists():
        case = Case(world.folder / f"whole-{slug(title)}-{os.getpid()}", 0)
        _lay_out(source, world, case.work)
        ended = case.run(argv)
        if trouble := ended.trouble(may_be=(0,)):
            raise RuntimeError(f"{title}: with the whole file, {trouble}")
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(contents(case.work / out)))
        os.replace(fresh, path)
        shutil.rmtree(case.folder)
    return json.loads(path.read_text())
