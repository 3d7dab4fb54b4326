"""What a run leaves to read: metrics as JSON lines and TensorBoard, tables, panel pictures and curves."""

import json
import math
import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from simfast.data.classes import CLASS_NAMES, colourise
from simfast.evaluate import Scores

matplotlib.use("Agg")
from matplotlib import pyplot as plt


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

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One row: {"kind": "train" or "eval", "step": updates made, name: value ...}; NaN becomes null."""
        row = {name: None if math.isnan(value) else value for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step} | row) + "\n")
        for name, value in values.items():
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


def score_row(scores: Scores) -> dict[str, float]:
    """Scores as one flat row of metrics: miou, pixel_accuracy, iou/CLASS."""
    classes = {f"iou/{CLASS_NAMES[c]}": value for c, value in scores.iou.items()}
    return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy} | classes


def score_table(columns: dict[str, dict[str, float]]) -> str:
    """IoU per class and their mean, in percent, one column an evaluation (rows of `score_row`)."""
    names = [name for name in next(iter(columns.values())) if name.startswith("iou/")]
    percent = [[name.removeprefix("iou/")] + [_percent(row[name]) for row in columns.values()] for name in names]
    percent.append([f"mean of {len(names)}"] + [_percent(row["miou"]) for row in columns.values()])
    return tabulate(percent, headers=["IoU, %", *columns], disable_numparse=True, stralign="right")


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def save_panel(path: Path, pictures: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """A picture of image, prediction and truth side by side, one row each; unlabelled pixels of the truth are black.

    Args:
        path: the PNG to write.
        pictures: (image uint8 [3, H, W], prediction uint8 [H', W'], label uint8 [H', W']), on the CPU.
    """
    rows = []
    for image, predicted, label in pictures:
        height, width = label.shape
        photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
        rows.append([np.asarray(photo), colourise(predicted.numpy()), colourise(label.numpy())])
    height, width = (min(tile.shape[axis] for row in rows for tile in row) for axis in (0, 1))
    sheet = [[np.asarray(Image.fromarray(tile).resize((width, height), 0)) for tile in row] for row in rows]
    temporary = path.with_name(path.name + ".part")
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in sheet])).save(temporary, format="PNG")
    os.replace(temporary, path)


def save_curve(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """mIoU over steps (the paper's Figure 2), one line a run (rows of `read_metrics`)."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, rows in runs.items():
        points = [(row["step"], 100 * row["miou"]) for row in rows if row["kind"] == "eval" and row["miou"] is not None]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="step", ylabel="mIoU on the held-out target, %")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)
