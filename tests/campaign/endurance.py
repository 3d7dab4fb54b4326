"""A long run watched: its memory, its descriptors and its processes stay as they were once it was warm, however many
steps, evaluations and checkpoints follow; and nothing of it is left."""

import os
import time
from pathlib import Path

from .case import Case, Running, descendants
from .world import World

STEPS = 400
GROWTH = 24 * 2**20
"""Bytes by which the program may grow after its first third. A checkpoint of this network is 2 MB, written some hundred
times; a leak of one tensor of it at each would be seen, the allocator's coming and going is about half of this."""
FEWEST = 12
PAGE = os.sysconf("SC_PAGE_SIZE")


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    few = ["--log-every", "2", "--eval-every", "4", "--steps", str(STEPS), "--schedule-steps", str(2 * STEPS)]
    run = ["train", *world.common, *few, "--out", "run"]
    programs = (
        ("train", [*run, "--workers", "0"]),
        ("predict, 600 pictures", ["predict", str(world.trained), "pictures", "--out", "out", "--device", "cpu"]),
        ("train, 2 workers", [*run, "--workers", "2"]),
        ("prepare, 2,000 pictures", ["prepare", *_many(world), "--workers", "0", "--cache", "cache"]),
    )
    name, argv = programs[seed % len(programs)]
    if "pictures" in name:
        _copies(world, case.work)
    running = case.start(argv)
    seen = watch(running)
    ended = running.wait()
    trouble = ended.trouble(may_be=(0,)) or case.orphans() or grown(seen)
    if trouble is None and descendants():
        trouble = f"still there: {descendants()}"
    said = f"{len(seen)} looks"
    if trouble is None and len(seen) < FEWEST:
        trouble = "over too soon to say anything"
    return [(f"endurance: {name}", 1, [f"{said}: {trouble}"] if trouble else [])]


def watch(running: Running) -> list[tuple[int, int, int]]:
    """Memory, bytes, descriptors and processes of a program, twenty times a second until its end."""
    seen = []
    while not running.poll():
        here = Path(f"/proc/{running.pid}")
        try:
            memory = int((here / "statm").read_text().split()[1]) * PAGE
            seen.append((memory, len(list((here / "fd").iterdir())), len(descendants())))
        except OSError:
            break
        time.sleep(0.05)
    return seen


def grown(seen: list[tuple[int, int, int]], allowed: int = GROWTH) -> str | None:
    """What is more in the last quarter of a program's life than in the second; None where nothing is. Of each the
    lowest counts: what is there for a moment is no leak."""
    quarter = len(seen) // 4
    early, late = seen[quarter : 2 * quarter], seen[-quarter - 1 : -1]
    before, after = ([min(column) for column in zip(*part, strict=True)] for part in (early, late))
    for what, was, now, more in zip(
        ("memory", "descriptors", "processes"), before, after, (allowed, 2, 1), strict=True
    ):
        if now > was + more:
            return f"{what} grew from {was:,} to {now:,}"
    return None


def _many(world: World) -> list[str]:
    return [one.replace(str(world.data), "data") for one in world.parts]


def _copies(world: World, work: Path) -> None:
    """As many pictures as the names say, links to few."""
    pictures = sorted((world.data / "pictures").glob("*.png"))
    (work / "pictures").mkdir()
    for number in range(600):
        os.link(pictures[number % len(pictures)], work / f"pictures/{number}.png")
    for domain, split, count in (("source", "train", 1000), ("target", "train", 1000), ("target", "val", 2)):
        for kind in ("images", "labels"):
            folder = work / "data" / domain / split / kind
            folder.mkdir(parents=True)
            there = sorted((world.data / domain / split / kind).iterdir())
            for number in range(count):
                os.link(there[number % len(there)], folder / f"{number}.png")
