"""Losses and scores of a run while it goes: JSON lines and TensorBoard."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from simfast.runtime.files import write_text


class Metrics:
    """`metrics.jsonl` and TensorBoard files of a run; continuing at a step forgets what was written after it.

    Args:
        folder: the run's folder.
        step: 0 for a new run, else the step it continues from.
    """

    def __init__(self, folder: Path, step: int = 0):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= step] if self.path.exists() else []
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115  open as long as the run
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, float | None]) -> None:
        """One row: {"kind": "train" or "eval", "step": updates made, name: value ...}."""
        self._file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
