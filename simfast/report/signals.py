"""Signals without labels as a row of metrics, a line and a table."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from simfast.inference.signals import Signals, distance

# The titles of a row's values in a table.
TITLES = {
    "confidence": "mean confidence",
    "entropy": "mean entropy, of log K",
    "over_cap": "pixels over the cap",
    "mirror": "the same when mirrored",
    "share_distance": "class shares' distance",
}


def signal_row(signals: Signals, labelled: Sequence[float], names: Sequence[str]) -> dict[str, float | None]:
    """Signals as one flat row of metrics, in [0, 1], that has no score: miou is None.

    confidence, entropy, over_cap and mirror as in `Signals`; share_distance, the total variation between the shares of
    the classes in the predictions and in the labels trained on; share/CLASS, those in the predictions.

    Args:
        signals: of `find_signals`.
        labelled: share of each class in the labels trained on.
        names: of the classes.
    """
    row: dict[str, float | None] = {"miou": None, "confidence": signals.confidence, "entropy": signals.entropy}
    row |= {"over_cap": signals.over_cap, "mirror": signals.mirror}
    row["share_distance"] = distance(signals.shares, labelled)
    return row | {f"share/{name}": share for name, share in zip(names, signals.shares, strict=True)}


def signal_text(row: dict[str, Any], cap: float) -> str:
    """A row of `signal_row` as one line; `cap` is that of pseudo labels."""
    parts = [f"confidence {_percent(row['confidence'])} %", f"entropy {_percent(row['entropy'])} % of log K"]
    parts += [f"{_percent(row['over_cap'])} % of the pixels over {cap:g}"]
    parts += [f"{_percent(row['mirror'])} % the same when mirrored"]
    return ", ".join([*parts, f"class shares {_percent(row['share_distance'])} % from the labels'"])


def signal_table(columns: dict[str, dict[str, Any]], labelled: dict[str, float]) -> str:
    """Share of each class in the predictions beside that in the labels trained on, then the other signals, in percent.

    Args:
        columns: rows of `signal_row` by their titles.
        labelled: share in the labels trained on by class name.
    """
    rows = [
        [name, *(_percent(row[f"share/{name}"]) for row in columns.values()), _percent(share)]
        for name, share in labelled.items()
    ]
    rows += [[title, *(_percent(row[key]) for row in columns.values()), ""] for key, title in TITLES.items()]
    headers = ["share of pixels, %", *columns, "labels"]
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="right")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
