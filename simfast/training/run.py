"""The story of a run: data and networks, then steps with evaluations and checkpoints between them."""

import dataclasses
import json
import logging
import math
import signal
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from simfast.config import Config
from simfast.data.loader import DomainLoader, evaluation_loader
from simfast.data.order import Dataset, Mixture
from simfast.data.parts import open_part, open_source, scored_classes, warn_if_void
from simfast.inference.evaluate import evaluate
from simfast.models import checkpoint
from simfast.report.figures import save_curve
from simfast.report.metrics import Metrics, read_metrics
from simfast.report.panels import save_panel
from simfast.report.results import read_result
from simfast.report.scores import score_row, scores_text
from simfast.runtime import distributed
from simfast.runtime.console import StopSignals, in_file
from simfast.runtime.environment import environment, pick_device
from simfast.runtime.files import write_text
from simfast.training.build import build_trainer
from simfast.training.first_look import first_look
from simfast.training.folder import RunFolder, run_folder
from simfast.training.looks import Scoring, Watching, is_better, titled
from simfast.training.optimizers import poly
from simfast.training.progress import TrainingProgress
from simfast.training.stage2 import find_pseudo_labels
from simfast.training.step import Trainer
from simfast.training.switches import own_switches

log = logging.getLogger("simfast")
# Which of the settings every result is printed with.
RESULT_SETTINGS = ("stage", "recipe", "seed", "source", "target", "arch", "transfer", "fda_beta", "source_images")


def run(config: Config) -> dict[str, Any]:
    """One run from its settings to its last evaluation.

    Returns:
        What `result.json` in the run's folder holds: {"row", "step", "last", "best", "seconds" ...}, scores as rows of
        metrics; with stage "all", {"stage1", "stage2"} of these.

    Raises:
        ValueError, OSError: bad settings or data.
        SystemExit: a signal (128 + its number); a checkpoint is saved first.
    """
    if config.resume is None:
        _require_used(config)
    try:
        with distributed.joined(pick_device(config.device)) as device, run_folder(config) as folder:
            return (both_stages if config.stage == "all" else train)(config, device, folder)
    except (ValueError, OSError) as error:
        if distributed.size() > 1:
            raise type(error)(f"rank {distributed.rank()}: {error}") from error
        raise


def _require_used(config: Config) -> None:
    """
    Raises:
        ValueError: something that stage 2 alone would begin from is given, and another stage is asked for.
    """
    given = {"stage1": config.stage != 2 and config.stage1, "pseudo_labels": config.stage == 1 and config.pseudo_labels}
    for name, value in given.items():
        if value:
            remedy = f"give --stage 2, or --{name.replace('_', '-')} None"
            raise ValueError(f"{name}: must not be given with --stage {config.stage}, got {value}; {remedy}")


def both_stages(config: Config, device: torch.device, folder: RunFolder) -> dict[str, Any]:
    """Stage 1, then stage 2 with pseudo labels of its best checkpoint, each in a folder of its own. What an interrupted
    run has finished is kept."""
    lead, out = distributed.is_lead(), folder.path
    if lead:
        write_text(out / "config.yaml", yaml.safe_dump(config.portable(), sort_keys=False))
    results: dict[str, Any] = {}
    for stage, first in ((1, None), (2, out / "stage1")):
        name = f"stage{stage}"
        done, last = read_result(out / name / "result.json"), out / name / "last.pt"
        if done is not None:
            results[name] = done
            continue
        resume = last if last.exists() else None
        one = dataclasses.replace(config, stage=stage, stage1=first, out=out / name, resume=resume)
        try:
            with run_folder(one) as own:
                results[name] = train(one, device, own)
        except SystemExit:
            log.info("both stages continue with --resume %s", out)
            raise
    if lead:
        write_text(out / "result.json", json.dumps(results, indent=1) + "\n")
    log.info("%s: both stages are done, stage1/ and stage2/", out)
    return results


def train(config: Config, device: torch.device, folder: RunFolder) -> dict[str, Any]:
    """The story of a run: data and networks, then steps with evaluations and checkpoints between them.

    Where several processes train together, all live through it, and the lead alone writes. Of a program around, torch's
    switches and random numbers and the log are at the end as they were before, also where it ends by an error.
    """
    with in_file(folder.path / "log.txt" if distributed.is_lead() else None), own_switches(config.deterministic):
        return _train(config, device, folder)


def _train(config: Config, device: torch.device, folder: RunFolder) -> dict[str, Any]:
    lead, out = distributed.is_lead(), folder.path
    torch.manual_seed(config.seed)
    resumed = checkpoint.load(config.resume) if config.resume else None
    processes = distributed.size()
    if resumed and (before := resumed.get("processes", 1)) != processes:
        rule = f"must go on with as many processes as it began with ({before}): data order and banks depend on them"
        raise ValueError(f"resume: {config.resume} {rule}, got {processes}")
    first, best, last = (resumed[key] for key in ("step", "best", "last")) if resumed else (0, None, None)
    spent = resumed.get("seconds", 0.0) if resumed else 0.0  # older checkpoints do not say
    if first > config.steps:
        raise ValueError(f"steps: must be at least {first}, where {config.resume} is, got {config.steps}")
    what = f"stage {config.stage}, preset {config.preset}, {config.recipe} recipe, seed {config.seed}"
    steps = f"steps {first + 1} to {config.steps}" if first < config.steps else f"all {first} steps are done"
    log.info("%s: %s, %s", config.row, what, steps)
    pseudo_labels = distributed.on_lead(find_pseudo_labels, config, device, out) if config.stage == 2 else None
    loader, labelled, looks = open_data(config, device, first, pseudo_labels)
    report = None if config.report_split is None else open_part(config, "report")  # what is missing shows now
    trainer = build_trainer(config, device, resumed)
    if resumed:
        checkpoint.set_random_state(resumed["random"])
    ops = f", {trainer.matching.ops} ops" if trainer.matching else ""
    how = f"{device}, {trainer.mode} in {trainer.precision}{ops}"
    how += f", {processes} processes" if processes > 1 else ""
    log.info("network: %s on %s", config.arch, how)
    log.info("run folder: %s, with these settings in config.yaml", out)

    def save(step: int, is_best: bool) -> None:
        if lead:
            state = {"step": step, "best": best, "last": last, "config": config.to_dict(), "seconds": seconds()}
            state |= {"processes": processes, "random": checkpoint.random_state()}
            for name in ("best.pt", "last.pt") if is_best else ("last.pt",):
                checkpoint.save(out / name, trainer.state_dict() | state)

    def seconds() -> float:
        """In all parts of the run."""
        return spent + time.monotonic() - started

    if lead:
        write_text(out / "config.yaml", yaml.safe_dump(config.portable(), sort_keys=False))
    metrics = Metrics(out, first) if lead else None
    started, sums, since = time.monotonic(), None, first
    progress = TrainingProgress(config, first, device)
    with StopSignals() as stop, progress, closing(metrics) if lead else nullcontext():
        for step, batch in zip(range(first + 1, config.steps + 1), loader):  # noqa: B905  the loader is endless
            losses = trainer.step(step - 1, *batch)
            folder.begun = True
            sums = torch.stack(list(losses.values())) + (0 if sums is None else sums)
            progress.update()

            if step % config.log_every == 0 or step == config.steps:
                sums = distributed.total(sums) / ((step - since) * processes)
                means = dict(zip(losses, sums.tolist(), strict=True))  # the one read from the device
                sums, since = None, step
                if not all(map(math.isfinite, means.values())):
                    raise ValueError(f"the losses are not finite at step {step}: {means}; the last checkpoint is kept")
                if lead:
                    metrics.write("train", step, means | {"lr": poly(config.lr, step - 1, config)})
                progress.say(step, means)

            if step % config.eval_every == 0 or step == config.steps:
                with progress.evaluating():
                    distributed.share_buffers(trainer.model)
                    last, pictures = looks.look(trainer)
                    if lead:
                        metrics.write("eval", step, last)
                    last["step"] = step
                    if is_best := is_better(last, best):
                        best = last
                    save(step, is_best)
                    if lead and pictures:
                        save_panel(out / f"panel-{step:06d}.png", pictures, config.classes)
                progress.show(*looks.shown(last))
                log.info("step %d: %s", step, looks.line(last, best))

            received = distributed.highest(stop.received or 0)
            if received and step < config.steps:
                save(step, is_best=not config.scored)
                name = signal.Signals(received).name
                log.info("stopped by %s after step %d; continue with --resume %s", name, step, out)
                distributed.wait()  # torchrun ends the others as soon as one is gone
                raise SystemExit(128 + received)

    result = {"row": config.row} | {key: config.to_dict()[key] for key in RESULT_SETTINGS}
    result |= {"step": config.steps, "last": last, "best": best, "seconds": round(seconds(), 1)}
    result |= {"processes": processes, "environment": environment(device)}
    result |= looks.found()
    table = looks.table({name: result[name] for name in ("last", "best")})
    if report is not None:
        result["report"], reported = distributed.on_lead(score_report, config, trainer, out, labelled, report)
        table = reported if config.scored else f"{table}\n\n{reported}"
    if lead:
        write_results(config, out, result, table)
    distributed.wait()
    return result


def write_results(config: Config, out: Path, result: dict[str, Any], table: str) -> None:
    """What a run leaves at its end, beside its checkpoints."""
    save_curve(out / "curve.png", {config.row: read_metrics(out / "metrics.jsonl")})
    write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    log.info("%s, %s recipe, seed %d", config.row, config.recipe, config.seed)
    log.info("%s\n", table)
    log.info("%s: checkpoints last.pt and best.pt, panels, curve.png, metrics.jsonl, tensorboard/", out)


def score_report(
    config: Config, trainer: Trainer, out: Path, labelled: Dataset | Mixture, part: Dataset
) -> tuple[dict[str, Any], str]:
    """Rows of metrics of the last and the best checkpoint on the part that nothing was chosen on, in fp32 whatever the
    run's precision, as `simfast evaluate` scores them; and their table."""
    class_ids, loader = scored_classes(config, labelled, part), evaluation_loader(part, 1, config.workers)
    rows: dict[str, Any] = {}
    for name in ("last", "best"):
        state = checkpoint.load(out / f"{name}.pt")
        if same := [row for row in rows.values() if row["step"] == state["step"]]:
            rows[name] = same[0]
            continue
        trainer.model.load_state_dict(state["model"])
        own = {"labelled_ids": part.class_ids, "sets": config.classes.sets}
        scores, _ = evaluate(trainer.model, loader, class_ids, trainer.convention, trainer.device, **own)
        rows[name] = score_row(scores, config.classes) | {"step": state["step"]}
        warn_if_void(rows[name], part)
    table = scores_text(titled(rows), config.classes, class_ids, labelled.class_ids)
    return rows, f"{config.report_split}\n{table}"


def open_data(
    config: Config, device: torch.device, position: int, pseudo_labels: Path | None
) -> tuple[DomainLoader, Dataset | Mixture, Scoring | Watching]:
    """Training batches from a position on, this process's share of them; what is trained on with labels; and what the
    run is looked at by. target-only trains on the target's labels as source-only does on the source's. At position 0
    all of it is checked by a sample."""
    target = open_part(config, "target", pseudo_labels)
    labelled = target if config.method == "target-only" else open_source(config)
    looks = (Scoring if config.scored else Watching)(config, labelled, device)
    seen = target if config.uses_target or config.transfer != "none" else None
    if position == 0:
        distributed.on_lead(first_look, config, labelled, seen, looks.scored, pseudo_labels is not None)
    share = {"rank": distributed.rank(), "ranks": distributed.size()}
    loader = DomainLoader(
        labelled, seen, config.batch_size, config.seed, config.workers, config.flip, position, device, **share
    )
    for sentence in dict.fromkeys((*labelled.passed_over, *target.passed_over, *looks.passed_over)):
        log.info("%s", sentence)
    what, size = (config.target, config.target_size) if labelled is target else (config.source[0], config.source_size)
    if isinstance(labelled, Mixture):
        sets = zip(labelled.datasets, config.sources, strict=True)
        what = "; ".join(f"{len(data)} of {source.root or source.name}, share {source.share}" for data, source in sets)
    text = "{} labelled ({}, {}x{})".format(len(labelled), what, *size)
    if seen is not None:
        text += ", {} target ({}, {}x{})".format(len(seen), config.target, *config.target_size)
    log.info("data: %s, %s", text, looks.about)
    return loader, labelled, looks
