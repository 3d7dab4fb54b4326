"""Everything that a machine with a GPU is asked, in one call; or a part of it.

    python -m bench.gpu OUT [--budget 530] [--only PART ...] [--from PART] [--library FILE ...] [--rehearse]

Parts run in the order of their worth, each in a process of its own and with a limit of its own. The budget is in
seconds on the clock: a part is not begun when less is left than it could be of use in, so that only the tail is cut;
`--from` begins the next call there. What is measured is in OUT/results.jsonl at once. A part that fails says so, and
the others go on; the exit status is then 1. OUT also receives log.txt and table.md, which is printed last.
`python -m bench.gpu.table OUT` makes it again, `python -m bench.gpu.collect OUT` a result file for bench/results/.

The machine needs torch with its Triton, numpy and pytest; no network, and nothing is built there. `make gpu-bundle`
gathers in build/gpu-bundle, which git ignores, the library, variants of it that are measured beside it, and wheels of
what may be missing: carry that folder besides the tracked files. A simfast/_simfast.so is taken before the bundle's.
Without a GPU it is a rehearsal of the smallest cases; `--rehearse` is for a stand-in of a GPU that computes nothing:
wrong values are written down and stop nothing.
"""

import argparse
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench import rows
from bench.gpu.variants import BUNDLE, ROOT, VARIANTS

TABLE_SECONDS = 5  # of the budget, for the table


@dataclass(frozen=True)
class Part:
    """A process of the run.

    Args:
        name: of the part.
        module: and what it is called with.
        expected: seconds that it should take on an H100, an estimate; of the variants each library.
        limit: seconds after which it is ended.
        least: seconds without which it is not begun.
    """

    name: str
    module: tuple[str, ...]
    expected: int
    limit: int
    least: int


def step(what: str, expected: int, limit: int, least: int) -> Part:
    return Part(f"step-{what}", ("bench.gpu.step", "--what", what), expected, limit, least)


def program(name: str, expected: int, limit: int, least: int) -> Part:
    return Part(name, ("bench.gpu.programs", "--what", name), expected, limit, least)


# What is most worth knowing first. The first seven fit into five minutes, the next six with a process for each library
# into five more.
PARTS = (
    Part("smoke", ("bench.gpu.smoke",), 30, 75, 20),
    Part("ops", ("bench.gpu.ops",), 35, 75, 20),
    step("first", 55, 110, 40),
    program("tests-step", 45, 90, 30),
    Part("matching", ("bench.gpu.matching",), 20, 45, 15),
    step("profile", 30, 60, 25),
    program("tests-ops", 50, 90, 30),
    step("plain", 30, 60, 25),
    Part("variants", ("bench.gpu.ops",), 15, 60, 15),
    step("more", 45, 90, 30),
    program("train", 45, 90, 30),
    program("counters", 40, 75, 30),
    step("convolutions", 20, 45, 15),
    step("fused", 55, 110, 30),
    step("fused-all", 58, 110, 30),
    program("memcheck", 40, 75, 25),
    step("compile", 90, 220, 80),  # most of it in the compiler
    program("tests-rest", 45, 90, 30),
    step("batches", 45, 90, 30),
    program("peers-matching", 30, 60, 20),
    program("peers-components", 30, 60, 20),
    program("peers-segment_mean", 30, 60, 20),
    program("peers-nearest", 50, 75, 25),
    program("peers-regions", 25, 45, 20),
    program("racecheck", 50, 75, 25),
    program("tests-compile", 55, 110, 40),
    program("peers-data", 40, 60, 30),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=530, help="seconds on the clock for everything")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"these parts: {', '.join(names)}")
    parser.add_argument("--from", dest="first", choices=names, metavar="PART", help="this part and those after it")
    parser.add_argument("--library", nargs="*", type=Path, help="variants (default: those in build/gpu-bundle)")
    parser.add_argument("--rehearse", action="store_true", help="on a stand-in of a GPU: wrong values stop nothing")
    asked = parser.parse_args()
    chosen = [part for part in PARTS if not asked.only or part.name in asked.only]
    if asked.first:
        chosen = [part for part in chosen if names.index(part.name) >= names.index(asked.first)]
    asked.out.mkdir(parents=True, exist_ok=True)
    libraries = asked.library if asked.library is not None else sorted(BUNDLE.glob("_simfast-*.so"))
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(asked.out.resolve(), Path(scratch), asked.budget, asked.rehearse)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            for part in chosen:
                run.part(part, libraries)
        finally:
            run.end()
    raise SystemExit(int(bool(run.red)))


class Run:
    """The state of one call."""

    def __init__(self, out: Path, scratch: Path, budget: float, rehearse: bool):
        self.out, self.scratch, self.red = out, scratch, []
        self.ends = time.monotonic() + budget
        self.child: subprocess.Popen | None = None
        site = unpacked(BUNDLE / "wheels", scratch / "site")
        path = [str(ROOT), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "OMP_WAIT_POLICY": "passive",  # threads that spin hold up whatever else runs
        }
        if rehearse:
            self.environment["SIMFAST_BENCH_REHEARSAL"] = "1"
        own = ROOT / "simfast" / "_simfast.so"
        if not own.exists() and (BUNDLE / own.name).exists() and "SIMFAST_LIBRARY" not in os.environ:
            self.environment["SIMFAST_LIBRARY"] = str(BUNDLE / own.name)
        (out / "log.txt").touch()

    def part(self, part: Part, libraries: list[Path]) -> None:
        if part.name != "variants":
            self.process(part, part.name, [], {})
            return
        # The first one again at the end: what differs between its two times is noise.
        for file in [*libraries, None]:
            label = file.stem.removeprefix("_simfast-") if file else "simfast, again"
            environment = {"SIMFAST_LIBRARY": str(file.resolve())} if file else {}
            cases = VARIANTS[label].cases if label in VARIANTS else ("",)
            more = ["--label", label, "--select", *cases, *([] if file else ["--tiles"])]
            self.process(part, f"variants: {label}", more, environment)

    def process(self, part: Part, name: str, more: list[str], environment: dict[str, str]) -> None:
        left = self.ends - TABLE_SECONDS - time.monotonic()
        if left < part.least:
            self.say(name, "not begun", 0.0, f"{max(left, 0):.0f} s were left")
            return
        limit, began = min(part.limit, left), time.monotonic()
        before = len(rows.read(self.out / "results.jsonl"))
        command = [sys.executable, "-m", *part.module, *more]
        command += ["--out", str(self.out), "--scratch", str(self.scratch)]
        with open(self.out / "log.txt", "a") as log:
            log.write(f"\n== {name}\n")
            log.flush()
            self.child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                status: int | None = self.child.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
                self.kill()
        seconds = time.monotonic() - began
        written = rows.read(self.out / "results.jsonl")[before:]
        reasons = {row.get("skipped") for row in written}
        if status == 0 and written and None not in reasons:
            self.say(name, "skipped", seconds, ", ".join(reasons))
        elif status == 0:
            self.say(name, "passed", seconds)
        else:
            self.red.append(name)
            why = f"status {status}" if status is not None else f"longer than {limit:.0f} s"
            if not any("error" in row for row in written):  # it ended before it could say why
                lines = (self.out / "log.txt").read_text(errors="replace").split()
                why += f": {' '.join(lines[-12:])[-120:]}"
            self.say(name, "RED", seconds, why)

    def kill(self) -> None:
        """Ends the child and whatever it started: it leads a process group."""
        if self.child is None or self.child.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(self.child.pid, number)
            try:
                self.child.wait(3)
                return
            except subprocess.TimeoutExpired:
                continue

    def say(self, name: str, outcome: str, seconds: float, why: str = "") -> None:
        row = {"part": "run", "case": name, "outcome": outcome, "seconds": round(seconds, 1), "why": why}
        rows.append(self.out / "results.jsonl", row)
        print(f"== {name}: {outcome} in {seconds:.0f} s {why}".rstrip(), flush=True)

    def end(self) -> None:
        self.kill()
        from bench.gpu.table import SHOWN, table

        found = rows.read(self.out / "results.jsonl")
        (self.out / "table.md").write_text(table(found) + "\n")
        print(table(found, SHOWN), flush=True)


def unpacked(wheels: Path, site: Path) -> Path | None:
    """A folder with the packages of these wheels that are not installed; None if there is none to add."""
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            importlib.metadata.distribution(wheel.name.split("-")[0])
        except importlib.metadata.PackageNotFoundError:
            if (f"-cp{sys.version_info.major}{sys.version_info.minor}-" in wheel.name) or "-none-any" in wheel.name:
                zipfile.ZipFile(wheel).extractall(site)
    return site if site.exists() else None


if __name__ == "__main__":
    main()
