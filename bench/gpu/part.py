"""What every part is given: the device, and rows that are on disk as soon as they are written."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import rows
from bench.timing import REHEARSAL

DONE = "SIMFAST_BENCH_DONE"  # cases that an earlier process of this part has been through, and whether one was red


class Part:
    """One part's process.

    Args:
        name: of the part, in its rows.
        arguments: what `arguments` parsed.
    """

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.name, self.path = name, arguments.out / "results.jsonl"
        self.scratch = arguments.scratch or arguments.out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rehearsal = bool(os.environ.get(REHEARSAL))
        self.red, self.began = False, time.monotonic()

    def row(self, case: str, **values: Any) -> None:
        """Writes one row, and says it in the log."""
        row = {"part": self.name, "case": case, **values}
        rows.append(self.path, row)
        shown = {key: value for key, value in values.items() if key not in ("kernels_by_name", "phases_ms")}
        print(f"{case}: {shown}"[:400], flush=True)

    def each(self, cases: dict[str, Callable[[], None]]) -> None:
        """Runs the cases; one that fails has a row with its error, and the others go on.

        An error that leaves the GPU's context unusable costs its case alone: the rest runs in a new process.
        """
        done = os.environ.get(DONE, "").split("\n")
        self.red = self.red or "red" in done
        for name, run in cases.items():
            if name in done:
                continue
            try:
                run()
            except Exception as error:
                traceback.print_exc()
                self.red = True
                self.row(name, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
                if self.device == "cuda" and _broken():
                    before = list(cases)[: list(cases).index(name) + 1]
                    os.environ[DONE] = "\n".join(["red", *done, *before])
                    sys.stdout.flush()
                    os.execv(sys.executable, [sys.executable, "-m", *_module(), *sys.argv[1:]])

    def needs_gpu(self) -> bool:
        """Whether there is one; if not, a row says that the part is skipped."""
        if self.device != "cuda":
            self.row(self.name, skipped="no GPU")
        return self.device == "cuda"

    def end(self) -> None:
        raise SystemExit(int(self.red))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What the driver passes to every part."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl")
    parser.add_argument("--scratch", type=Path, help="folder for what later parts of the same run may use again")
    return parser


def _module() -> list[str]:
    return [sys.modules["__main__"].__spec__.name]


def _broken() -> bool:
    """Whether an error stays with this process: what runs on the GPU from here on fails too."""
    try:
        torch.cuda.synchronize()
        return not bool(torch.ones(8, device="cuda").sum() == 8) and not os.environ.get(REHEARSAL)
    except RuntimeError:
        return True
