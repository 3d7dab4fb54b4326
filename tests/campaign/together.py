"""Two at a time in one folder: one of them is refused by one line, and the other ends as if it had been alone."""

import time

from .case import Case
from .compare import difference
from .world import World

REFUSAL = ("one program at a time", "holds a run already", "got one in it")
PAIRS = ("train", "prepare", "pseudo-labels", "ablate", "train --stage all", "prepare, 2 workers", "train, 2 workers")


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    name = PAIRS[seed % len(PAIRS)]
    program, row = world.programs[name], f"two at a time: {name}"
    first = case.start(program.argv)
    wait = case.rng.choice((0.0, 0.01, case.rng.random() * world.seconds(name)))
    end, resume = time.monotonic() + wait, case.rng.random() < 0.5
    while time.monotonic() < end and not first.poll():
        time.sleep(0.002)
    argv = program.argv
    if resume and program.resume:  # of a run that is alive, once there is something to resume
        while not first.poll() and program.goes_on(case.work) == argv:
            time.sleep(0.002)
        argv = program.goes_on(case.work)
    alone = first.poll()
    second = case.start(argv)
    ends = [first.wait(), second.wait()]
    said = f"{wait:.2f} s apart{', the second resumed' if argv == program.resume else ''}: {[e.status for e in ends]}"
    troubles = [ended.trouble(may_be=(0, 1)) for ended in ends]
    refused = [ended for ended in ends if ended.status != 0]
    trouble = next(filter(None, troubles), None)
    if trouble is None and len(refused) == 2:
        trouble = f"both refused: {ends[0].err!r}, {ends[1].err!r}"
    if trouble is None and refused and not any(word in refused[0].err for word in REFUSAL):
        trouble = f"must be refused for two at a time, got {refused[0].err!r}"
    # A second one that finds all done may well say so; while the first is at work it may not.
    if trouble is None and not refused and not alone and _overlapped(ends):
        trouble = "neither was refused"
    trouble = trouble or case.orphans() or difference(case.work / program.out, world.wanted(name))
    return [(row, 1, [f"{said}: {trouble}"] if trouble else [])]


def _overlapped(ends: list) -> bool:
    """Whether both did the work: a program that waited for its turn, or came after, says that all is done."""
    return all("steps 1 to " in ended.out for ended in ends)
