"""The table of an ablation: our figures beside the paper's, curves, pictures."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from simfast.analysis.rows import GROUPS, Run
from simfast.config.classes import CITYSCAPES
from simfast.report.figures import save_curve
from simfast.report.metrics import read_metrics
from simfast.report.panels import save_comparison
from simfast.report.results import read_result
from simfast.report.signals import TITLES
from simfast.runtime.files import write_text

# mIoU on Cityscapes val, %: Tables 1-6, over 19 classes (GTA5) and 13 (SYNTHIA).
_GTA5 = (36.6, 41.4, 44.9, 46.2, 49.2, 65.1)
_SYNTHIA = (38.6, 45.9, 46.0, 47.1, 52.1, 71.7)
PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("gta5", "resnet101"): dict(zip(GROUPS["modules"], _GTA5, strict=True))
    | dict(zip(GROUPS["lambda_ci"], (43.4, 44.2, 46.2, 45.4, 45.5), strict=True))
    | dict(zip(GROUPS["w"], (45.2, 46.2, 46.1, 45.3, 45.0), strict=True)),
    ("synthia", "resnet101"): dict(zip(GROUPS["modules"], _SYNTHIA, strict=True)),
    ("gta5", "vgg16"): {"aa+it+sim+ssl": 42.4},
}
# Of runs without labels to score on, what stands in the table.
SIGNALS = {name: TITLES[name] for name in ("confidence", "mirror", "share_distance")}


def write_tables(runs: list[Run], out: Path) -> None:
    """ablation.json, ablation.md and panel.png of the runs that are done, and curves.png of all that have begun."""
    rows = summarise(runs)
    write_text(out / "ablation.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "ablation.md", table(rows) + "\n")
    curves = {f"{run.row}, seed {run.config.seed}": run.config.out / "metrics.jsonl" for run in runs}
    begun = {name: read_metrics(path) for name, path in curves.items() if path.exists()}
    if begun:
        save_curve(out / "curves.png", begun)
    scored = runs[0].config.scored  # a row of the other kind has pictures of other images
    done = [run for run in reversed(runs) if run.done and run.panel.exists() and run.config.scored == scored]
    panels = {run.row: run.panel for run in done}
    if panels:
        save_comparison(out / "panel.png", dict(reversed(panels.items())), truth=scored)


def summarise(runs: list[Run]) -> list[dict[str, Any]]:
    """One dictionary a row, figures in percent over its seeds: mean and spread (sample deviation) of last and best
    mIoU, and of last mIoU on the part to choose on where those are of another part (`report_split`); of the last
    signals where there are no labels to score on; IoU of each class at the last step; the gap closed, (row -
    source-only) / (target-only - source-only), of last mIoU where both are there; and the paper's figure where it has
    one for these data sets and this network."""
    found_of = {run: found for run in runs if (found := read_result(run.result)) is not None}
    results = {run: _scores(result) for run, result in found_of.items()}
    rows = []
    for name in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == name]
        found = [results[run] for run in own if run in results]
        config = own[0].config
        row: dict[str, Any] = {
            "row": name,
            "trained": config.row,
            "seeds": [run.config.seed for run in own if run in results],
        }
        for which in ("last", "best"):
            row[which], row[f"{which}_spread"] = _mean_and_spread(result[which]["miou"] for result in found)
        chosen = [found_of[run]["last"]["miou"] for run in own if "report" in found_of.get(run, {})]
        row["chosen_on"], row["chosen_on_spread"] = _mean_and_spread(chosen)
        for which in SIGNALS:
            values = [found_of[run]["last"].get(which) for run in own if run in found_of]
            row[which], row[f"{which}_spread"] = _mean_and_spread(values)
        names = [key for key in (found[0]["last"] if found else {}) if key.startswith("iou/")]
        row["classes"] = {
            key.removeprefix("iou/"): _mean_and_spread(result["last"].get(key) for result in found)[0] for key in names
        }
        papers = config.target == "cityscapes" and config.classes == CITYSCAPES
        published = PUBLISHED.get((" + ".join(config.source), config.arch), {}) if papers else {}
        row |= {"paper": published.get(name), "recipe": config.recipe, "gap_closed": None}
        row["environments"] = [result.get("environment") for result in found]
        rows.append(row)
    last = {row["row"]: row["last"] for row in rows}
    lower, upper = last.get("source-only"), last.get("target-only")
    for row in rows:
        if None not in (lower, upper, row["last"]) and upper != lower:
            row["gap_closed"] = 100 * (row["last"] - lower) / (upper - lower)
    return rows


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """A result whose scores are those of the part that nothing was chosen on, where there is one."""
    return result | result.get("report", {})


def _mean_and_spread(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """In percent, of values in [0, 1]; None where there is no value, or no two for a spread."""
    found = [100 * value for value in values if value is not None]
    return statistics.fmean(found) if found else None, statistics.stdev(found) if len(found) > 1 else None


def table(rows: list[dict[str, Any]]) -> str:
    """`summarise` as Markdown: mIoU of the rows, then IoU of the classes."""

    def number(value: float | None, spread: float | None = None) -> str:
        return "-" if value is None else f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    headers = ["row", "trained", "recipe", "seeds", "last mIoU, %", "best mIoU, %", "gap closed, %", "paper"]
    figures = ["last", "best"]
    if any(row["chosen_on"] is not None for row in rows):
        headers.insert(6, "last, on the part to choose on")
        figures.append("chosen_on")
    for which, title in SIGNALS.items():
        if any(row[which] is not None for row in rows):
            headers.insert(4 + len(figures), f"{title}, %")
            figures.append(which)
    body = [
        [
            *(row["row"], row["trained"], row["recipe"], len(row["seeds"])),
            *(number(row[which], row[f"{which}_spread"]) for which in figures),
            *(number(row["gap_closed"]), number(row["paper"])),
        ]
        for row in rows
    ]
    classes = list(dict.fromkeys(name for row in rows for name in row["classes"]))
    by_class = [[name, *(number(row["classes"].get(name)) for row in rows)] for name in classes]
    names = ["IoU, %, last", *(row["row"] for row in rows)]
    tables = [(body, headers), *([(by_class, names)] if classes else [])]
    return "\n\n".join(tabulate(x, headers=h, tablefmt="github", disable_numparse=True) for x, h in tables)
