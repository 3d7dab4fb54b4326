"""The story of a run: data and networks, then steps with evaluations and checkpoints between them."""

import dataclasses
import json
import logging
import signal
from contextlib import closing, nullcontext, suppress
from typing import Any

import torch
import yaml

from simfast.config import Config
from simfast.models import checkpoint
from simfast.report.metrics import Metrics
from simfast.report.panels import save_panel
from simfast.report.results import read_result
from simfast.runtime import distributed
from simfast.runtime.console import StopSignals, in_file
from simfast.runtime.environment import environment, pick_device
from simfast.runtime.files import write_text
from simfast.runtime.lock import tidy
from simfast.training.build import build_trainer
from simfast.training.engines import NAME as ENGINES
from simfast.training.failures import explained, retold
from simfast.training.folder import RunFolder, run_folder
from simfast.training.keeping import Keeper
from simfast.training.looks import is_better
from simfast.training.moved import found_again, is_lost, places_of
from simfast.training.opening import open_data
from simfast.training.optimizers import poly
from simfast.training.progress import TrainingProgress
from simfast.training.results import score_report, write_results
from simfast.training.soundness import Soundness
from simfast.training.stage2 import find_pseudo_labels
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
            try:
                return (both_stages if config.stage == "all" else train)(config, device, folder)
            except Exception as error:
                if (told := explained(error, config)) is None:
                    raise
                raise told from error
    except (ValueError, OSError) as error:
        if distributed.size() > 1:
            raise retold(error, f"rank {distributed.rank()}: {error}") from error
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
    begun = out / "stage1" / checkpoint.LAST
    if config.resume and begun.is_file():  # which tells where the data were
        with suppress(ValueError):  # what is damaged is told of where it is needed
            config = found_again(config, checkpoint.load_run(begun))
    results: dict[str, Any] = {}
    for stage, first in ((1, None), (2, out / "stage1")):
        name = f"stage{stage}"
        done, last = read_result(out / name / "result.json"), out / name / "last.pt"
        if done is not None:
            results[name] = done
            if lead:
                tidy(out / name)
            continue
        resume = last if last.exists() else None
        one = dataclasses.replace(config, stage=stage, stage1=first, out=out / name, resume=resume)
        own = None
        try:
            with run_folder(one, out) as own:
                results[name] = train(one, device, own)
        except (SystemExit, ValueError, OSError) as error:
            said = (own and own.begun) or f"--resume {out}" in str(error)
            if (stage == 2 or last.exists()) and not said:
                log.info("both stages continue with --resume %s", out)
            raise
        if stage == 1 and own.received:
            asked = signal.Signals(own.received).name
            log.info("stopped by %s after stage 1; continue with --resume %s", asked, out)
            raise SystemExit(128 + own.received)
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
    lead, out, command = distributed.is_lead(), folder.path, folder.command
    torch.manual_seed(config.seed)
    resumed = checkpoint.load_run(config.resume) if config.resume else None
    first = resumed["step"] if resumed else 0
    _require_same_run(config, resumed)
    what = f"stage {config.stage}, preset {config.preset}, {config.recipe} recipe, seed {config.seed}"
    steps = f"steps {first + 1} to {config.steps}" if first < config.steps else f"all {first} steps are done"
    log.info("%s: %s, %s", config.row, what, steps)
    here = found_again(config, resumed) if resumed else config
    pseudo_labels = distributed.on_lead(find_pseudo_labels, here, device, folder) if config.stage == 2 else None
    try:
        loader, labelled, looks, report, data = open_data(here, device, first, pseudo_labels, resumed)
    except ValueError as error:
        if not (resumed and is_lost(here)):
            raise
        remedy = "where the data have moved, --resume takes the new place too: --source-root, --target-root"
        raise ValueError(f"{error}; {remedy}") from error
    trainer = build_trainer(here, device, resumed)
    if (engines := trainer.networks.engines) is not None:
        # Those that a new run finds in its folder are of no run; stage 1's are of the same network.
        found = [out / ENGINES] if resumed else []
        if not resumed and here.stage1 is not None:
            found = [checkpoint.resolve(here.stage1, "best.pt", stage=1).parent / ENGINES]
        engines.keep_in(out / ENGINES, *found)
    if resumed:
        checkpoint.set_random_state(resumed["random"])
    ops = f", {trainer.matching.ops} ops" if trainer.matching else ""
    how = f"{device}, {trainer.mode} in {trainer.precision}{ops}"
    how += f", {distributed.size()} processes" if distributed.size() > 1 else ""
    log.info("network: %s on %s", config.arch, how)
    log.info("run folder: %s, with these settings in config.yaml", out)
    if lead:
        write_text(out / "config.yaml", yaml.safe_dump(config.portable(), sort_keys=False))
    soundness = Soundness(config, trainer, first, (resumed or {}).get("losses", {}))  # older checkpoints have none
    facts = {"data": data, "places": places_of(here)}
    keeper = Keeper(config, out, command, trainer, loader, soundness, resumed, facts)
    metrics = Metrics(out, first, keeper.look_is_due) if lead else None
    progress = TrainingProgress(config, first, device)

    def look(step: int) -> None:
        with progress.evaluating():
            soundness.require()  # before it takes minutes
            distributed.share_buffers(trainer.model)
            row, pictures = looks.look(trainer)
            if lead:
                metrics.write("eval", step, row)
                if pictures:  # before the checkpoint: a run that is killed between them looks again
                    save_panel(out / f"panel-{step:06d}.png", pictures, config.classes)
            keeper.looked(row, is_better(row, keeper.best))
        progress.show(*looks.shown(keeper.last))
        log.info("step %d: %s", step, looks.line(keeper.last, keeper.best))

    with StopSignals() as stop, progress, closing(metrics) if lead else nullcontext(), keeper.saving_on_error():
        if keeper.look_is_due:
            look(first)
        for step, batch in zip(range(first + 1, config.steps + 1), loader):  # noqa: B905  the loader is endless
            losses = trainer.step(step - 1, *batch)
            folder.begun = True
            if engines is not None:
                engines.save()
            keeper.step = step
            soundness.add(step, losses)
            progress.update()

            if step % config.log_every == 0 or step == config.steps:
                means = soundness.read()  # the one read from the device
                if lead:
                    metrics.write("train", step, means | {"lr": poly(config.lr, step - 1, config)})
                progress.say(step, means)

            if step % config.eval_every == 0 or step == config.steps:
                look(step)

            received = distributed.highest(stop.received or 0)
            if received and step < config.steps:
                keeper.save(is_best=not config.scored)
                name = signal.Signals(received).name
                log.info("stopped by %s after step %d; continue with --resume %s", name, step, command)
                distributed.wait()  # torchrun ends the others as soon as one is gone
                raise SystemExit(128 + received)

    folder.received = distributed.highest(stop.received or 0)
    result = {"row": config.row} | {key: config.to_dict()[key] for key in RESULT_SETTINGS}
    result |= {"step": config.steps, "last": keeper.last, "best": keeper.best, "seconds": round(keeper.seconds(), 1)}
    result |= {"processes": distributed.size(), "environment": environment(device)}
    result |= looks.found()
    table = looks.table({name: result[name] for name in ("last", "best")})
    if report is not None:
        with keeper.saving_on_error():
            result["report"], reported = distributed.on_lead(score_report, config, trainer, out, labelled, report)
        table = reported if config.scored else f"{table}\n\n{reported}"
    if lead:
        write_results(config, out, result, table)
    distributed.wait()
    return result


def _require_same_run(config: Config, resumed: dict[str, Any] | None) -> None:
    """
    Raises:
        ValueError: the checkpoint cannot go on as now.
    """
    if resumed is None:
        return
    processes = distributed.size()
    if (before := resumed.get("processes", 1)) != processes:
        rule = f"must go on with as many processes as it began with ({before}): data order and banks depend on them"
        raise ValueError(f"resume: {config.resume} {rule}, got {processes}")
    if (first := resumed["step"]) > config.steps:
        raise ValueError(f"steps: must be at least {first}, where {config.resume} is, got {config.steps}")
