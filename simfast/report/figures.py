"""Curves over steps, and how a figure is saved."""

from pathlib import Path
from typing import Any

# Not pyplot, which keeps figures and a backend for all of the process.
from matplotlib.figure import Figure

from simfast.runtime.files import replacing

# What evaluations find: the title of the axis, and the line style of each value on it.
AXES: dict[str, dict[str, str]] = {
    "mIoU on the held-out target, %": {"miou": "-"},
    "target without labels, %": {"confidence": "-", "mirror": "--"},
}
NAMES = {"confidence": "mean confidence", "mirror": "the same when mirrored"}


def save_curve(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """What evaluations found over steps, one colour a run (rows of `read_metrics`): mIoU (the paper's Figure 2), and
    beside it the signals of runs without labels to score on, where there are such runs."""
    evaluations = {name: [row for row in rows if row["kind"] == "eval"] for name, rows in runs.items()}
    found = {key for rows in evaluations.values() for row in rows for key, value in row.items() if value is not None}
    shown = [title for title, keys in AXES.items() if found & keys.keys()] or [next(iter(AXES))]
    figure = Figure(figsize=(6 * len(shown), 4), layout="constrained")
    all_axes = figure.subplots(1, len(shown), squeeze=False)
    for title, axes in zip(shown, all_axes[0], strict=True):
        for number, (name, rows) in enumerate(evaluations.items()):
            for key, style in AXES[title].items():
                points = [(row["step"], 100 * row[key]) for row in rows if row.get(key) is not None]
                if points:
                    label = f"{name}, {NAMES[key]}" if key in NAMES else name
                    axes.plot(*zip(*points, strict=True), style, marker="o", color=f"C{number}", label=label)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """A figure as a PNG, whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
