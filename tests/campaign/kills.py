"""Programs killed at random moments, once or several times in a row, and started again: what is there in the end is
what an uninterrupted program leaves, bit for bit; no process outlives its program, and nothing unfinished stays."""

import signal
import time

from .case import Case
from .compare import difference
from .world import World

# What the whole group gets, or the program alone; after the asking signals the program saves and goes.
KILLS = (("kill -9", signal.SIGKILL, True), ("kill -9 of the first process", signal.SIGKILL, False))
ASKS = (
    *(("SIGTERM", signal.SIGTERM, True), ("SIGHUP", signal.SIGHUP, True), ("SIGINT", signal.SIGINT, True)),
    *(("SIGTERM to the first process", signal.SIGTERM, False), ("SIGHUP to it", signal.SIGHUP, False)),
)
# Of a Python that is interrupted while it starts.
BEFORE_IT_BEGAN = "init_import_site"
PROGRAMS = (
    *("train", "train", "train, 2 workers", "prepare", "pseudo-labels", "train --stage all", "train, 2 workers"),
    *("prepare, 2 workers", "train", "ablate", "predict"),
)


def cases(seed: int, world: World, case: Case) -> list[tuple[str, int, list[str]]]:
    rng, name = case.rng, PROGRAMS[seed % len(PROGRAMS)]
    program, seconds = world.programs[name], world.seconds(name)
    asked = rng.random() < 0.35
    title, number, group = rng.choice(ASKS if asked else KILLS)
    row = f"{'signals' if asked else 'kill -9'}: {name}"
    new = name != "predict" and rng.random() < 0.1  # by a Python of its own, which takes seconds to start
    said = [f"{title}, {'a program of its own' if new else 'forked'}"]

    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        argv = program.goes_on(case.work)
        running = case.start(argv, new=new)
        end = time.monotonic() + rng.uniform(0, 1.1) * seconds + (3 if new else 0) * rng.random()
        while not running.poll() and time.monotonic() < end:
            time.sleep(0.002)
        over = running.poll()
        if not over:
            running.kill(number, group)
        ended = running.wait()
        said.append(f"after {'its end' if over else 'a while'}: {ended.status}")
        if BEFORE_IT_BEGAN in ended.err:
            continue
        if orphans := case.orphans():
            return [(row, 1, [f"{said}: {orphans}"])]
        if asked and ended.status not in (0, 128 + number, -number, 130):
            return [(row, 1, [f"{said}: {ended.trouble() or ended.err[-300:]}"])]
        if not over and not asked:
            continue
        trouble = None if ended.status in (-number, 128 + number, 130) else ended.trouble(may_be=(0,))
        if trouble or "Traceback" in ended.out + ended.err:
            return [(row, 1, [f"{said}: {trouble or ended.err[-600:]}"])]

    ended = case.run(program.goes_on(case.work))
    trouble = ended.trouble(may_be=(0,)) or case.orphans()
    if trouble is None:
        trouble = difference(case.work / program.out, world.wanted(name))
    return [(row, 1, [f"{said}, then: {trouble}"] if trouble else [])]
