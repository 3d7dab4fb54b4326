"""Scores of an evaluation as a row of metrics, a table, JSON and text."""

import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from simfast.data.classes import CLASS_NAMES, CLASS_SETS
from simfast.inference.evaluate import Scores
from simfast.models.weights import WeightsReport


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
