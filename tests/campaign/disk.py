"""The disk is full after so many bytes: the program ends with one line that says so, or for good; nothing unfinished
stays on the full disk. With room again it goes on, and ends as if nothing had been, bit for bit."""

from . import journal
from .case import Case
from .compare import difference, leftovers
from .power import recorded
from .world import World

PROGRAMS = ("train", "prepare", "pseudo-labels", "train --stage all", "predict", "ablate", "evaluate --report")
FULL = ("No space left on device", "ENOSPC", "the disk has")


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    name = PROGRAMS[seed % len(PROGRAMS)]
    program, row = world.programs[name], f"full disk: {name}"
    room = _room(recorded(world, name)[0], case)
    ended = case.run(program.argv, full=room)
    said = f"room for {room} bytes"
    trouble = ended.trouble(*FULL, may_be=(0, 1)) or case.orphans()
    if trouble is None and (left := leftovers(case.work)):
        trouble = f"left behind: {left}"
    if trouble is None:
        again = case.run(program.goes_on(case.work))
        trouble = again.trouble(may_be=(0,)) or difference(case.work / program.out, world.wanted(name))
        said += f", ended with {ended.status}, then with room"
    return [(row, 1, [f"{said}: {trouble}"] if trouble else [])]


def _room(operations: list[journal.Operation], case: Case) -> int:
    """Somewhere in a write of the program: large and small ones alike."""
    writes = [len(one.data) for one in operations if one.what == "write"]
    number = case.rng.randrange(len(writes))
    if case.rng.random() < 0.5:  # of a file, the first or the last one
        ends = [n for n in range(len(writes) - 1) if max(writes[n], writes[n + 1]) < 1000]
        number = case.rng.choice(ends or [number])
    return sum(writes[:number]) + case.rng.randrange(writes[number] + 1)
