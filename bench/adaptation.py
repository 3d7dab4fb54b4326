"""The page of the adaptation measurements, bench/results/adaptation.md, from result files.

    python -m bench.adaptation collect FOLDER NAME --title TITLE --command COMMAND

puts what `simfast ablate` left in FOLDER into bench/results/adaptation/NAME.json: rows, curves and losses, no picture
and no path. With --panel ROW... it also writes NAME-panel.png, the predictions of these rows side by side.

    python -m bench.adaptation diagnosis FILE NAME --title TITLE --command COMMAND

does the same with a --report of `simfast diagnose`.

    python -m bench.adaptation page

writes the page and its curves from all files in that folder; reading.md there is the text that the page begins with.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from tabulate import tabulate

from simfast.analysis.ablation_table import table
from simfast.analysis.diagnose import diagnosis_text
from simfast.config import Config
from simfast.data.loader import evaluation_loader
from simfast.data.parts import open_part
from simfast.inference.evaluate import evaluate
from simfast.models import checkpoint
from simfast.models.restore import restore_model
from simfast.report.figures import save_figure
from simfast.report.metrics import read_metrics
from simfast.report.panels import save_comparison, save_panel
from simfast.runtime.files import write_text

RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "adaptation"
LOSSES = ("seg", "mix", "adv", "d", "stuff", "instance", "seg_target")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action, what in (("collect", "--out of simfast ablate"), ("diagnosis", "--report of simfast diagnose")):
        one = actions.add_parser(action)
        one.add_argument("path", type=Path, help=what)
        one.add_argument("name", help="of the result file; the page has the files in the order of their names")
        one.add_argument("--title", required=True)
        one.add_argument("--command", required=True, help="as a reader would give it")
    actions.choices["collect"].add_argument("--panel", nargs="+", default=[], help="rows of the picture")
    actions.add_parser("page")
    arguments = parser.parse_args()
    if arguments.action == "page":
        write_page()
        return
    about = {"title": arguments.title, "command": arguments.command}
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.action == "diagnosis":
        found = json.loads(arguments.path.read_text())
        found["checkpoint"] = "/".join(Path(found["checkpoint"]).parts[-2:])
        write_text(FOLDER / f"{arguments.name}.json", json.dumps(about | {"diagnosis": found}, indent=1) + "\n")
    else:
        collect(arguments.path, arguments.name, about, arguments.panel)


def collect(folder: Path, name: str, about: dict[str, str], panel: list[str]) -> None:
    """One result file of the runs in a folder."""
    rows = [row for row in json.loads((folder / "ablation.json").read_text()) if row["seeds"]]
    for row in rows:
        runs = [folder / f"{row['row'].replace(',', '-')}-seed{seed}" for seed in row["seeds"]]
        metrics = [read_metrics(run / "metrics.jsonl") for run in runs]
        row["curves"] = [[(x["step"], x["miou"]) for x in rows if x["kind"] == "eval"] for rows in metrics]
        row["losses"] = [_means_of_tenths([x for x in rows if x["kind"] == "train"]) for rows in metrics]
    write_text(FOLDER / f"{name}.json", json.dumps(about | {"rows": rows}, indent=1) + "\n")
    if panel:
        runs = {row["row"]: folder / f"{row['row'].replace(',', '-')}-seed{row['seeds'][0]}" for row in rows}
        save_predictions(FOLDER / f"{name}-panel.png", {title: runs[title] for title in panel})


def _means_of_tenths(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Losses over a run as ten means in a row: of a batch of two they jump."""
    size = max(1, len(rows) // 10)
    parts = [rows[i : i + size] for i in range(0, size * 10, size)]
    return [
        {"step": part[-1]["step"]}
        | {name: sum(row[name] for row in part) / len(part) for name in LOSSES if name in part[0]}
        for part in parts
        if part
    ]


def save_predictions(path: Path, runs: dict[str, Path], pictures: int = 4) -> None:
    """The last networks' predictions on the same held-out images; neither images nor truth, which are not ours."""
    panels = {}
    for title, run in runs.items():
        config = Config.from_dict(checkpoint.load(run / "last.pt")["config"], str(run))
        restored, part = restore_model(run / "last.pt"), open_part(config, "held-out")
        chosen = [len(part) * i // pictures for i in range(pictures)]
        batches = [batch for i, batch in enumerate(evaluation_loader(part, 1, 0)) if i in chosen]
        cpu = torch.device("cpu")
        _, shown = evaluate(restored.model, batches, part.class_ids, restored.convention, cpu, pictures)
        panels[title] = run / "shown.png"
        save_panel(panels[title], shown, config.classes)
    save_comparison(path, panels, with_data=False)


def write_page() -> None:
    """adaptation.md and the curves beside it."""
    parts = [(FOLDER / "reading.md").read_text().rstrip()]
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text())
        parts += [f"## {result['title']}", f"```\n{result['command']}\n```"]
        parts += _runs(path.stem, result["rows"]) if "rows" in result else _diagnosis(result["diagnosis"])
    write_text(RESULTS / "adaptation.md", "\n\n".join(parts) + "\n")


def _runs(name: str, rows: list[dict[str, Any]]) -> list[str]:
    curves, panel = FOLDER / f"{name}-curves.png", FOLDER / f"{name}-panel.png"
    save_curves(curves, rows)
    parts = [table(rows), f"![mIoU on camvid/val over steps](adaptation/{curves.name})"]
    if panel.exists():
        parts.append(f"![predictions of the rows, side by side](adaptation/{panel.name})")
    losses = "Unweighted losses, means over the first, a middle and the last tenth of a run (its first seed):"
    return [*parts, losses, _losses(rows), _made_with(rows)]


def _diagnosis(found: dict[str, Any]) -> list[str]:
    device, torch_version, commit = (found["environment"][key] for key in ("device", "torch", "commit"))
    return [f"```\n{diagnosis_text(found)}\n```", f"{device}, torch {torch_version}, commit {commit[:10]}"]


def _made_with(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        for seed, env in zip(row["seeds"], row["environments"], strict=True):
            commit = (env["commit"] or "none")[:10] + ("" if env["clean"] else ", changed")
            lines.append([row["row"], seed, env["device"], f"torch {env['torch']}", commit])
    headers = ["row", "seed", "device", "made with", "commit"]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _losses(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        parts = row["losses"][0]
        chosen = [parts[0], parts[len(parts) // 2], parts[-1]]
        cells = [" / ".join(f"{part[name]:.3g}" for part in chosen) if name in parts[0] else "" for name in LOSSES]
        lines.append([row["row"], *cells])
    return tabulate(lines, ["row", *LOSSES], tablefmt="github", disable_numparse=True)


def save_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """mIoU over steps, a line a row, thin ones for further seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, row in enumerate(rows):
        for seed, curve in enumerate(row["curves"]):
            steps, scores = zip(*curve, strict=True)
            style = {"label": row["row"], "lw": 2} if seed == 0 else {"lw": 0.8}
            axes.plot(steps, [100 * x for x in scores], "o-", color=f"C{i % 10}", ms=3, **style)
    axes.set(xlabel="step", ylabel="mIoU on the part to choose on, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
