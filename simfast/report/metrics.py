"""Losses and scores of a run while it goes: JSON lines and TensorBoard."""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from simfast.report.board import Board
from simfast.report.results import is_figure
from simfast.runtime.files import naming, write_text

log = logging.getLogger("simfast")


class Metrics:
    """`metrics.jsonl` and TensorBoard files of a run; continuing at a step forgets what was written after it.

    Args:
        folder: the run's folder.
        step: 0 for a new run, else the step it continues from.
        look_due: whether what a look found at that step is forgotten, too, as it is still to come.
    """

    def __init__(self, folder: Path, step: int = 0, look_due: bool = False):
        self.path = folder / "metrics.jsonl"
        rows = read_metrics(self.path) if self.path.exists() else []
        last = {"train": step, "eval": step - 1 if look_due else step}
        kept = [row for row in rows if row["step"] <= last.get(row["kind"], step)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115  open as long as the run
        self._board = Board(folder / "tensorboard", purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, float | None]) -> None:
        """One row: {"kind": "train" or "eval", "step": updates made, name: value ...}."""
        with naming(self.path):
            self._file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
            os.fsync(self._file.fileno())  # after a power loss, no row of a checkpoint's steps is missing
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)
        self._board.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a row that could not be written, which was said then
            self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, without a last line that a crash cut short.

    What else is no row, as a power loss may leave it, is left out with a warning that names the line.
    """
    rows, wrong = [], []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
            if number == len(lines):
                break
        rows.append(row) if _is_row(row) else wrong.append(number)
    if wrong:
        log.warning("%s: line %d and %d more are no rows of metrics, and left out", path, wrong[0], len(wrong) - 1)
    return rows


def _is_row(row: Any) -> bool:
    known = isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("step")) is int
    return known and all(is_figure(value) for key, value in row.items() if key != "kind")
