"""Curves over steps, and how a figure is saved."""

import os
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


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
