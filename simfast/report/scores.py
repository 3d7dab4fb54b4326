"""Scores of an evaluation as a row of metrics, a table, JSON and text."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from tabulate import tabulate

from simfast.config.classes import Classes
from simfast.inference.evaluate import Scores
from simfast.models.weights import WeightsReport


def score_row(scores: Scores, classes: Classes) -> dict[str, float | None]:
    """Scores as one flat row of metrics, in [0, 1]; None where there is no value.

    miou; classes, the number of classes that miou is a mean of; miou/SET, for each of the class list's score sets whose
    classes the labels can have; pixel_accuracy; iou/CLASS.
    """
    names = classes.names
    row: dict[str, float] = {"miou": scores.miou, "classes": len(_found(scores, scores.class_ids, classes))}
    row |= {f"miou/{name}": value for name, value in scores.means.items()}
    row["pixel_accuracy"] = scores.pixel_accuracy
    row |= {f"iou/{names[c]}": value for c, value in scores.iou.items()}
    return {name: None if math.isnan(value) else value for name, value in row.items()}


def score_table(
    columns: dict[str, dict[str, float | None]], classes: Classes, class_ids: Sequence[int] | None = None
) -> str:
    """IoU per class and their means, in percent, one column an evaluation; says over how many classes each mean is.

    Args:
        columns: rows of `score_row` by their titles.
        classes: of all of them.
        class_ids: the classes that miou is over: names of all others are put in brackets. None: no brackets.
    """
    rows = []
    for c, name in enumerate(classes.names):
        if any(f"iou/{name}" in row for row in columns.values()):
            title = name if class_ids is None or c in class_ids else f"({name})"
            rows.append([title] + [_percent(row.get(f"iou/{name}")) for row in columns.values()])
    rows.append(["classes"] + [row.get("classes", "-") for row in columns.values()])
    rows.append(["mIoU"] + [_percent(row["miou"]) for row in columns.values()])
    for name, ids in classes.sets.items():
        if any(f"miou/{name}" in row for row in columns.values()):
            members = [classes.names[c] for c in ids]
            rows.append([f"mIoU, {_set_title(name)}"] + [_mean_cell(row, name, members) for row in columns.values()])
    return tabulate(rows, headers=["IoU, %", *columns], disable_numparse=True, stralign="right")


def scores_text(
    columns: dict[str, dict[str, float | None]],
    classes: Classes,
    class_ids: Sequence[int],
    trained_ids: Collection[int] | None = None,
) -> str:
    """A `score_table` of rows on the same labels, and under it their `coverage`."""
    row = next(iter(columns.values()))
    return "\n".join([score_table(columns, classes, class_ids), *coverage(row, classes, class_ids, trained_ids)])


def coverage(
    row: dict[str, float | None], classes: Classes, class_ids: Sequence[int], trained_ids: Collection[int] | None = None
) -> list[str]:
    """Sentences on the classes that a mean IoU leaves out, and why; none where it is over all of the list.

    Args:
        row: of `score_row`.
        classes: the list.
        class_ids: the classes asked for.
        trained_ids: those that the training labels can have; None where nothing was trained.
    """
    names, asked = classes.names, [classes.names[c] for c in class_ids]
    scored = [name for name in asked if row.get(f"iou/{name}") is not None]
    absent = [name for name in asked if name not in scored]
    left_out = [name for name in names if name not in scored]
    untrained = [] if trained_ids is None else [name for c, name in enumerate(names) if c not in trained_ids]
    found = []
    if left_out:
        which = f", all but {_few(left_out)}" if len(left_out) < len(scored) else f": {_few(scored)}"
        found.append(f"mIoU is over {len(scored)} of {len(names)} classes{which}")
    if absent:
        found.append(f"the labels scored have no pixel of {_few(absent)}")
    if untrained:
        found.append(f"the labels trained on do not have {_few(untrained)}")
    return found


def _set_title(name: str) -> str:
    """A set that is named after its size is of so many classes."""
    return f"{name} classes" if name.isdigit() else name


def _mean_cell(row: dict[str, float | None], name: str, members: Sequence[str]) -> str:
    """A mean over a class set, with the number of classes it is really over where some have no IoU."""
    count = sum(row.get(f"iou/{member}") is not None for member in members)
    short = f" (of {count})" if f"miou/{name}" in row and count < len(members) else ""
    return _percent(row.get(f"miou/{name}")) + short


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _found(scores: Scores, class_ids: Sequence[int], classes: Classes) -> list[str]:
    return [classes.names[c] for c in class_ids if not math.isnan(scores.iou[c])]


def _few(names: Sequence[str], most: int = 20) -> str:
    return (", ".join(names[:most]) or "none") + (f" and {len(names) - most} more" if len(names) > most else "")


def evaluation_report(
    scores: Scores, classes: Classes, weights: WeightsReport, data: str, images: int
) -> dict[str, Any]:
    """What an evaluation of a checkpoint leaves as JSON: what was scored, on what, and over which classes.

    Args:
        scores: of `evaluate`.
        classes: the network's.
        weights: what `load_weights` or `restore_model` said of the checkpoint.
        data: the data set and its part, as a reader knows them.
        images: how many were scored.

    Returns:
        {"checkpoint", "tensors": {"matched", "total", "used", "in_file", "dropped"}, "convention", "data", "images",
        "scores": row of `score_row`, "means": {"miou", "miou/SET" ...: names of the classes that the mean is over},
        "absent": names of the classes asked for that no pixel of the labels has}.
    """
    sets = {"miou": scores.class_ids} | {f"miou/{name}": classes.sets[name] for name in scores.means}
    means = {name: _found(scores, ids, classes) for name, ids in sets.items()}
    return {
        "checkpoint": str(weights.path),
        "tensors": {
            **{"matched": weights.matched, "total": weights.total},
            **{"used": weights.used, "in_file": weights.in_file, "dropped": len(weights.dropped)},
        },
        "convention": weights.convention,
        "data": data,
        "images": images,
        "scores": score_row(scores, classes),
        "means": means,
        "absent": [classes.names[c] for c in scores.class_ids if classes.names[c] not in means["miou"]],
    }


def evaluation_text(report: dict[str, Any], classes: Classes) -> str:
    """An `evaluation_report` for the terminal."""
    tensors, means = report["tensors"], report["means"]
    asked = [classes.names.index(name) for name in (*means["miou"], *report["absent"])]
    lines = [
        f"{report['checkpoint']}: {tensors['matched']} of {tensors['total']} tensors of the network set, by "
        f"{tensors['used']} of {tensors['in_file']} of the file, {report['convention']} input",
        f"{report['data']}: {report['images']} images",
        "",
        scores_text({"IoU": report["scores"]}, classes, sorted(asked)),
        "",
    ]
    lines += [f"{name.replace('miou', 'mIoU')}: mean over {_few(names)}" for name, names in means.items()]
    return "\n".join(lines)
