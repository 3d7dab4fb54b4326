"""What a run leaves to read: metrics as JSON lines and TensorBoard, tables, panel pictures and curves."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from simfast.data.classes import CLASS_NAMES, CLASS_SETS, colourise
from simfast.evaluate import Scores
from simfast.models.weights import WeightsReport

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

PANEL_WIDTH = 1024
"""The most pixels that a picture in a panel is wide: at Cityscapes' 2048, a panel is 25 million pixels."""


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


def score_row(scores: Scores) -> dict[str, float | None]:
    """Scores as one flat row of metrics, in [0, 1]; None where there is no value.

    miou; classes, the number of classes that miou is a mean of; miou/19, miou/16 and miou/13, as far as the labels
    have these classes; pixel_accuracy; iou/CLASS.
    """
    row: dict[str, float] = {"miou": scores.miou, "classes": len(_found(scores, scores.class_ids))}
    row |= {f"miou/{n}": value for n, value in scores.means.items()}
    row["pixel_accuracy"] = scores.pixel_accuracy
    row |= {f"iou/{CLASS_NAMES[c]}": value for c, value in scores.iou.items()}
    return {name: None if math.isnan(value) else value for name, value in row.items()}


def score_table(columns: dict[str, dict[str, float | None]], class_ids: Sequence[int] | None = None) -> str:
    """IoU per class and their means, in percent, one column an evaluation; says over how many classes each mean is.

    Args:
        columns: rows of `score_row` by their titles.
        class_ids: the classes that miou is over: names of all others are put in brackets. None: no brackets.
    """
    rows = []
    for c, name in enumerate(CLASS_NAMES):
        if any(f"iou/{name}" in row for row in columns.values()):
            title = name if class_ids is None or c in class_ids else f"({name})"
            rows.append([title] + [_percent(row.get(f"iou/{name}")) for row in columns.values()])
    rows.append(["classes"] + [row.get("classes", "-") for row in columns.values()])
    rows.append(["mIoU"] + [_percent(row["miou"]) for row in columns.values()])
    for n, ids in CLASS_SETS.items():
        if any(f"miou/{n}" in row for row in columns.values()):
            rows.append([f"mIoU, {n} classes"] + [_mean_cell(row, n, ids) for row in columns.values()])
    return tabulate(rows, headers=["IoU, %", *columns], disable_numparse=True, stralign="right")


def _mean_cell(row: dict[str, float | None], n: int, ids: Sequence[int]) -> str:
    """A mean over a class set, with the number of classes it is really over where some have no IoU."""
    count = sum(row.get(f"iou/{CLASS_NAMES[c]}") is not None for c in ids)
    return _percent(row.get(f"miou/{n}")) + (f" (of {count})" if f"miou/{n}" in row and count < n else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _found(scores: Scores, class_ids: Sequence[int]) -> list[str]:
    return [CLASS_NAMES[c] for c in class_ids if not math.isnan(scores.iou[c])]


def evaluation_report(scores: Scores, weights: WeightsReport, data: str, images: int) -> dict[str, Any]:
    """What an evaluation of a checkpoint leaves as JSON: what was scored, on what, and over which classes.

    Args:
        scores: of `evaluate`.
        weights: what `load_weights` or `restore_model` said of the checkpoint.
        data: the data set and its part, as a reader knows them.
        images: how many were scored.

    Returns:
        {"checkpoint", "tensors": {"matched", "total", "dropped"}, "convention", "data", "images",
        "scores": row of `score_row`, "means": {"miou", "miou/19" ...: names of the classes that the mean is over}}.
    """
    sets = {"miou": scores.class_ids} | {f"miou/{n}": CLASS_SETS[n] for n in scores.means}
    return {
        "checkpoint": str(weights.path),
        "tensors": {"matched": weights.matched, "total": weights.total, "dropped": len(weights.dropped)},
        "convention": weights.convention,
        "data": data,
        "images": images,
        "scores": score_row(scores),
        "means": {name: _found(scores, ids) for name, ids in sets.items()},
    }


def evaluation_text(report: dict[str, Any]) -> str:
    """An `evaluation_report` for the terminal."""
    tensors, means = report["tensors"], report["means"]
    own = [CLASS_NAMES.index(name) for name in means["miou"]]
    lines = [
        f"{report['checkpoint']}: {tensors['matched']} of {tensors['total']} tensors matched, "
        f"{tensors['dropped']} of the file unused, {report['convention']} input",
        f"{report['data']}: {report['images']} images",
        "",
        score_table({"IoU": report["scores"]}, own),
        "",
    ]
    lines += [f"{name.replace('miou', 'mIoU')}: mean over {', '.join(names)}" for name, names in means.items()]
    return "\n".join(lines)


def save_panel(path: Path, pictures: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """A picture of image, prediction and truth side by side, one row each; unlabelled pixels of the truth are black.

    All have the size of the smallest label map, but at most `PANEL_WIDTH` in width.

    Args:
        path: the PNG to write.
        pictures: (image uint8 [3, H, W], prediction uint8 [H', W'], label uint8 [H', W']), on the CPU.
    """
    height, width = (min(label.shape[axis] for _, _, label in pictures) for axis in (0, 1))
    size = min(width, PANEL_WIDTH), round(height * min(1, PANEL_WIDTH / width))
    rows = []
    for image, predicted, label in pictures:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        maps = (
            Image.fromarray(colourise(x.numpy())).resize(size, Image.Resampling.NEAREST) for x in (predicted, label)
        )
        rows.append(np.concatenate([np.asarray(tile) for tile in (photo, *maps)], 1))
    temporary = path.with_name(path.name + ".part")
    Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
    os.replace(temporary, path)


def save_comparison(path: Path, panels: dict[str, Path], *, with_data: bool = True) -> None:
    """The predictions of several runs side by side, from their `save_panel` pictures of the same images.

    Args:
        path: the PNG to write.
        panels: picture of each run by its title.
        with_data: whether the images and the truth stand beside them; False where the data may not be passed on.
    """
    thirds = {title: np.split(np.asarray(Image.open(panel)), 3, axis=1) for title, panel in panels.items()}
    columns = {title: predicted for title, (_, predicted, _) in thirds.items()}
    if with_data:
        images, _, truth = next(iter(thirds.values()))
        columns = {"image": images} | columns | {"truth": truth}
    height, width = next(iter(columns.values())).shape[:2]
    figure, axes = plt.subplots(
        1, len(columns), figsize=(2.4 * len(columns), 2.4 * height / width + 0.3), layout="constrained", squeeze=False
    )
    for axis, (title, column) in zip(axes[0], columns.items(), strict=True):
        axis.imshow(column)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    save_figure(figure, path)


def save_curve(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """mIoU over steps (the paper's Figure 2), one line a run (rows of `read_metrics`)."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, rows in runs.items():
        points = [(row["step"], 100 * row["miou"]) for row in rows if row["kind"] == "eval" and row["miou"] is not None]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="step", ylabel="mIoU on the held-out target, %")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)
