"""The power goes at each write, rename and sync of a program: what may be on the disk then is put there, and the
program is started again. It goes on and ends as if nothing had been, bit for bit; or one line says what is the matter.
"""

import fcntl
import functools
import json
import os
import random
from pathlib import Path

from . import journal
from .case import Case
from .compare import difference
from .world import World, slug

PROGRAMS = ("train", "train --stage all", "prepare", "pseudo-labels", "ablate", "predict", "evaluate --report")
LONG, RARE = ("ablate", "train --stage all"), 5
"""Programs that take many seconds have their turn once in so many."""


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    """One state; none once every program's states have all been tried."""
    counts = {name: len(recorded(world, name)[1]) for name in PROGRAMS}
    place = seed
    for turn in range(RARE * max(counts.values())):  # the programs by turns, those with more states for longer
        turns = {name: turn / RARE if name in LONG else turn for name in PROGRAMS}
        there = [name for name in PROGRAMS if turns[name] < counts[name] and turns[name] == int(turns[name])]
        if place < len(there):
            return [_case(there[place], int(turns[there[place]]), world, case)]
        place -= len(there)
    return []


def _case(name: str, turn: int, world: World, case: Case) -> tuple[str, int, list[str]]:
    program, row = world.programs[name], f"power: {name}"
    operations, states = recorded(world, name)
    said = journal.restore(operations, {}, {}, states[turn], case.work)
    (case.folder / "state.txt").write_text(said + "\n")
    argv = program.goes_on(case.work)
    ended = case.run(argv)
    trouble = ended.trouble() or case.orphans()
    if trouble is None and ended.status != 0 and argv == program.resume:
        # Refused, by a line: then perhaps there was nothing yet to go on with, and the run can begin.
        second = case.run(program.argv)
        trouble = second.trouble()
        if trouble is None and second.status != 0 and not _is_refused_by_name(second.err):
            trouble = f"can neither go on nor begin: {ended.err!r}, {second.err!r}"
        ended = second
    if trouble is None and ended.status == 0:
        trouble = difference(case.work / program.out, world.wanted(name))
    return row, 1, [f"{said}: {trouble}"] if trouble else []


def _is_refused_by_name(err: str) -> bool:
    """Whether a line says which file is the matter, so that a user knows what to remove."""
    return any(name in err for name in ("last.pt", "config.yaml", "stage1", ".json", ".png", ".npy"))


@functools.cache
def recorded(world: World, name: str) -> tuple[list[journal.Operation], list[journal.State]]:
    """What a program does to files, and the states that a power loss may leave; recorded once, in the world."""
    folder = world.folder / "recorded"
    folder.mkdir(exist_ok=True)
    record, found = folder / f"{slug(name)}.record", folder / f"{slug(name)}.json"
    with open(folder / f"{slug(name)}.turn", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        case_folder = folder / slug(name)
        if not found.exists():
            record.unlink(missing_ok=True)
            case = Case(case_folder, name)
            ended = case.run(world.programs[name].argv, record=record)
            trouble = ended.trouble(may_be=(0,)) or difference(case.work / world.programs[name].out, world.wanted(name))
            if trouble:
                raise RuntimeError(f"{name}, recorded: {trouble}")
            operations = journal.read(record, case.work)
            states = list(journal.states(operations, {}, {}))
            random.Random(name).shuffle(states)
            found.with_suffix(".part").write_text(json.dumps(states))
            os.replace(found.with_suffix(".part"), found)
    states = [journal.State(*state) for state in json.loads(found.read_text())]
    return journal.read(record, Path(os.path.realpath(case_folder / "work"))), states
