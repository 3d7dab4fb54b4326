"""What a run leaves at its end, beside its checkpoints."""

import json
import logging
from pathlib import Path
from typing import Any

from simfast.config import Config
from simfast.data.loader import evaluation_loader
from simfast.data.order import Dataset, Mixture
from simfast.data.parts import scored_classes, warn_if_void, without_report
from simfast.inference.evaluate import evaluate
from simfast.models import checkpoint
from simfast.models.fusing import fuse
from simfast.report.figures import save_curve
from simfast.report.metrics import read_metrics
from simfast.report.scores import score_row, scores_text
from simfast.runtime.files import write_text
from simfast.training.failures import retold
from simfast.training.looks import titled
from simfast.training.step import Trainer

log = logging.getLogger("simfast")


def write_results(config: Config, out: Path, result: dict[str, Any], table: str) -> None:
    """The curve, result.json, and the table in the log."""
    save_curve(out / "curve.png", {config.row: read_metrics(out / "metrics.jsonl")})
    write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    log.info("%s, %s recipe, seed %d", config.row, config.recipe, config.seed)
    log.info("%s\n", table)
    log.info("%s: checkpoints last.pt and best.pt, panels, curve.png, metrics.jsonl, tensorboard/", out)


def score_report(
    config: Config, trainer: Trainer, out: Path, labelled: Dataset | Mixture, part: Dataset
) -> tuple[dict[str, Any], str]:
    """Rows of metrics of the last and the best checkpoint on the part that nothing was chosen on, in fp32 whatever the
    run's precision, as `simfast evaluate` scores them; and their table.

    Raises:
        ValueError, OSError: what cannot be scored; says how the run ends without it.
    """
    class_ids, loader = scored_classes(config, labelled, part, "report"), evaluation_loader(part, 1, config.workers)
    rows: dict[str, Any] = {}
    fuse(trainer.model, frozenset())  # as it is loaded from a checkpoint
    for name in ("last", "best"):
        state = checkpoint.load(out / f"{name}.pt")
        if same := [row for row in rows.values() if row["step"] == state["step"]]:
            rows[name] = same[0]
            continue
        trainer.model.load_state_dict(state["model"])
        own = {"labelled_ids": part.class_ids, "sets": config.classes.sets}
        try:
            scores, _ = evaluate(trainer.model, loader, class_ids, trainer.convention, trainer.device, **own)
        except (ValueError, OSError) as error:  # such as a file that has become bad since the first step
            raise retold(error, f"{error}; give {without_report(config)}") from error
        rows[name] = score_row(scores, config.classes) | {"step": state["step"]}
        warn_if_void(rows[name], part)
    table = scores_text(titled(rows), config.classes, class_ids, labelled.class_ids)
    return rows, f"{config.report_split}\n{table}"
