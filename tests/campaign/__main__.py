"""A long search for lost work and silent faults, in files and processes as they fail:

    python -m tests.campaign --minutes 60 --out FOLDER
    python -m tests.campaign --out FOLDER --kinds power --only 17      one case, which stays in FOLDER/cases

from the repository's root. The minutes are those of all calls together: the same command goes on where it was stopped,
until they are spent. What was bad stays in FOLDER/cases, with what its commands printed; what was good is deleted.
FOLDER/table.md has the counts. The exit status is 1 where anything was bad.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from datetime import date
from pathlib import Path

if __name__ == "__main__":
    from tests.campaign.case import again

    again()

from simfast.runtime.lock import locked
from tests.campaign.case import Case, descendants, isolate
from tests.campaign.progress import Progress
from tests.campaign.world import World

KINDS = {  # their shares of the time
    "kills": 30,
    "power": 30,
    "disk": 12,
    "flips": 10,
    "mangled": 18,
    "hostile": 3,
    "maps": 6,
    "together": 8,
    "endurance": 10,
}
MAPS_SECONDS = 20.0
DOCUMENTATION = __doc__


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser("python -m tests.campaign", description=DOCUMENTATION, formatter_class=_AsItIs)
    parser.add_argument("--minutes", type=float, default=60, help="of all calls together")
    parser.add_argument("--out", type=Path, default=Path("build/campaign"), help="folder of all that is made")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind; the others follow")
    parser.add_argument("--only", type=int, nargs="+", help="these cases alone, and keep them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at the same time")
    given = parser.parse_args()
    out = given.out.resolve()
    for name in ("cases", "world"):
        (out / name).mkdir(parents=True, exist_ok=True)
    _import()
    try:
        with locked(out, "--out"):
            return _campaign(given, out)
    except ValueError as error:  # two at a time
        raise SystemExit(f"campaign: {error}") from error


def _campaign(given: argparse.Namespace, out: Path) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    isolate(None)
    world = World(out / "world")
    world.make(lambda what: print(f"made once: {what}", flush=True))
    if given.only:
        return _only(given.kinds, given.only, world, out)
    progress = Progress(out / "progress.json", {"seed": given.seed})
    try:
        _search(given, world, out, progress)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there")
        raise SystemExit(130) from None
    finally:
        for pid in descendants():
            os.kill(pid, signal.SIGKILL)
        progress.save()
        about = f"{progress.seconds / 60:.0f} minutes, {date.today()}, seed {given.seed}"
        text = f"{progress.table()}\n\n{about}, {given.jobs} cases at the same time.\n"
        (out / "table.md").write_text(text)
        print(f"\n{text}\n{out}/table.md")
        print("".join(f"bad: {what}\n" for what in progress.state["bad"]), end="")
    return int(bool(progress.state["bad"]))


def _search(given: argparse.Namespace, world: World, out: Path, progress: Progress) -> None:
    """Cases, of the kind that is most behind its share, until the minutes are spent."""
    running: dict[int, tuple[str, int, float, Path]] = {}
    began, before = time.monotonic(), progress.seconds
    told = began
    while running or before + time.monotonic() - began < 60 * given.minutes:
        time_left = before + time.monotonic() - began < 60 * given.minutes
        open_kinds = [kind for kind in given.kinds if kind not in progress.state["over"]]
        while time_left and open_kinds and len(running) < given.jobs:
            # A case that runs counts as begun: else a kind of long cases would be taken again and again.
            busy = [kind for kind, *_ in running.values()]
            kind = min(open_kinds, key=lambda one: progress.share(one, KINDS[one]) + 2 * busy.count(one) / KINDS[one])
            number = progress.take(kind)
            folder = out / "cases" / f"{kind}-{given.seed + number}"
            running[_start(kind, given.seed + number, world, folder)] = (kind, number, time.monotonic(), folder)
        if not running:
            return
        time.sleep(0.01)
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                kind, number, since, folder = running.pop(pid)
                seconds = time.monotonic() - since
                rows = _verdict(folder)
                if rows == []:
                    progress.state["over"] = [*progress.state["over"], kind]
                progress.spend(kind, seconds)
                bad = progress.add(kind, number, rows, seconds)
                for what in bad:
                    print(f"bad: {what}\n  again: {_again(kind, given.seed + number)}", flush=True)
                if not bad:
                    shutil.rmtree(folder)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            tried = sum(entry["tried"] for entry in progress.state["rows"].values())
            said = f"{progress.seconds / 60:.0f} of {given.minutes:g} minutes, {tried} tried"
            print(f"{said}, {len(progress.state['bad'])} bad", flush=True)


def _start(kind: str, number: int, world: World, folder: Path) -> int:
    """Forks a process for one case, whose verdict it leaves in its folder."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        isolate(None)
        case = Case(folder, f"{kind} {number}")
        module = importlib.import_module(f"tests.campaign.{kind}")
        # Maps need no folder, and no world.
        rows = module.fuzz(number, seconds=MAPS_SECONDS) if kind == "maps" else module.cases(number, world, case)
        (folder / "verdict.json").write_text(json.dumps(rows))
    except BaseException:
        folder.mkdir(exist_ok=True)
        (folder / "verdict.json").write_text(
            json.dumps([(f"{kind}: the campaign itself", 1, [traceback.format_exc()])])
        )
    finally:
        os._exit(0)


def _verdict(folder: Path) -> list:
    path = folder / "verdict.json"
    return json.loads(path.read_text()) if path.exists() else [("the campaign itself", 1, [f"{folder}: no verdict"])]


def _only(kinds: list[str], numbers: list[int], world: World, out: Path) -> int:
    worst = 0
    for kind in kinds:
        for number in numbers:
            folder = out / "cases" / f"{kind}-{number}"
            os.waitpid(_start(kind, number, world, folder), 0)
            for row, tried, bad in _verdict(folder):
                print(f"{row}: {tried} tried, {len(bad)} bad", *bad, sep="\n  ")
                worst = worst or int(bool(bad))
            print(f"{folder}: kept")
    return worst


def _again(kind: str, number: int) -> str:
    return f"python -m tests.campaign --out build/again --kinds {kind} --only {number}"


def _import() -> None:
    """What the commands import, before they are forked; and the networks they build."""
    for name in ("cli.commands", "cli.parse", "training.run", "training.stage2", "analysis.ablate", "data.check"):
        importlib.import_module(f"simfast.{name}")
    for name in ("simfast.inference.predict", "simfast.data.prepare", "tyro", "matplotlib.pyplot"):
        importlib.import_module(name)
    importlib.import_module("torch.utils.tensorboard")
    from tests.campaign.narrow import narrow

    narrow()


class _AsItIs(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
