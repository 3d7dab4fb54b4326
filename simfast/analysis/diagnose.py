"""What a run's matching and its losses do, read from a checkpoint without training."""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from simfast.analysis.gradients import TRUTH, GradientTally, term_gradients
from simfast.analysis.region_statistics import RegionTally
from simfast.config import Config
from simfast.data import open_dataset
from simfast.data.loader import Batch, DomainLoader
from simfast.data.parts import arguments_of, open_part, open_source
from simfast.data.transfer import transfer
from simfast.inference.label_folder import require_labels
from simfast.models import checkpoint
from simfast.models.restore import require_same_names
from simfast.runtime.environment import environment
from simfast.training.build import build_matching, build_trainer
from simfast.training.step import Terms, Trainer

log = logging.getLogger("simfast")
# What the tensors of a checkpoint belong to; the rest may be changed to see what it would do.
FIXED = ("method", "stage", "arch", "head_dilations", "batch_norm", "stuff_rows", "max_instances", "self_training")


def diagnose(
    path: Path,
    config: Config,
    device: torch.device,
    *,
    pairs: int = 50,
    gradient_pairs: int = 10,
    bank_images: int = 200,
    fresh_banks: bool = False,
) -> dict[str, Any]:
    """How matching and the losses of Eq. 12 stand at a checkpoint, on its training data in the loader's order from the
    beginning: the same pairs for every run of a seed.

    The networks are in training mode and in the run's precision, as in a step. Nothing is updated or written. True
    target labels serve for purity and for the gradient that would help most, where the data set has them: this is
    diagnosis alone, training never sees them (but with target-only).

    Args:
        path: a checkpoint of a run.
        config: its settings, of which lambdas, gate, fill rule, data and the like may have been changed.
        device: where to compute.
        pairs: how many source and target images to go over.
        gradient_pairs: how many of them to compute gradients of.
        bank_images: how many source images fill the banks of a run that has none.
        fresh_banks: fill them anew in a run that has its own.

    Returns:
        Plain values for JSON: {"checkpoint", "step", "row", "arch", "precision", "pairs", "gradient_pairs",
        "fill_rule", "banks": where they come from, "classes": {name: see `RegionTally.row`}, "all": the same over all
        classes, "gradients": see `GradientTally.rows`, "environment"}.

    Raises:
        ValueError: no checkpoint of ours, other settings than it was trained with, or a count below 1.
    """
    for name, value in (("pairs", pairs), ("gradient_pairs", gradient_pairs), ("bank_images", bank_images)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    state = checkpoint.load(path)
    trainer = _restore(path, state, config, device)
    config, size = trainer.config, trainer.config.batch_size
    own_banks = trainer.matching is not None and not fresh_banks
    if not own_banks:
        trainer.matching = build_matching(config, trainer.model.num_features, device)
        log.info("filling the banks from %d source images", bank_images)
        _fill_banks(trainer, islice(_batches(config, path, device), -(-bank_images // size)))
    tally, gradients, losses = RegionTally(trainer.matching), GradientTally(trainer.weights), defaultdict(float)
    batches = -(-pairs // size)
    gradient_batches = min(batches, -(-gradient_pairs // size))
    for number, (batch, truth) in enumerate(islice(_batches(config, path, device), batches)):
        found = {}
        for domain in ("source", "target"):
            with torch.set_grad_enabled(number < gradient_batches):
                terms = _terms(trainer, batch, domain)
            if number < gradient_batches:
                found |= term_gradients(trainer, terms, truth if domain == "target" else None)
            tally.add(domain, terms, trainer.model.classify, truth if domain == "target" else None)
            for name, loss in terms.losses.items():
                losses[name] += loss.item() / batches
        gradients.add(found)
    rings = [k for k in range(len(tally.class_ids)) if tally.seen(k)]
    return {
        "checkpoint": str(path),
        "step": state["step"],
        "row": config.row,
        "arch": config.arch,
        "precision": trainer.precision,
        "pairs": batches * size,
        "gradient_pairs": gradient_batches * size,
        "fill_rule": config.fill_rule,
        "banks": "the run's own" if own_banks else f"filled anew from {-(-bank_images // size) * size} source images",
        "classes": {config.classes.names[tally.class_ids[k]]: tally.row([k]) for k in rings},
        "all": tally.row(rings),
        "gradients": gradients.rows(losses, _trained(config)),
        "environment": environment(device),
    }


def diagnosis_text(found: dict[str, Any]) -> str:
    """What `diagnose` found, for the terminal."""
    first = (
        f"{found['checkpoint']}: step {found['step']}, {found['row']}, {found['arch']} in {found['precision']}; "
        f"{found['pairs']} pairs, gradients of the first {found['gradient_pairs']}; banks: {found['banks']}"
    )
    rows = found["classes"] | {"all": found["all"]}
    tables = {
        f"Banks. A class takes part under fill rule any, full; this run's is {found['fill_rule']}": _bank_lines(rows),
        "Regions an image, the share of images with one, how many an image the head's gate would accept; purity:\n"
        "share of target regions whose class is what most of their pixels truly are": _region_lines(rows),
        "Distances (L1/C) of target regions from the nearest row of their own class and of any other; of rows from\n"
        "the nearest other row of their class; mean absolute feature": _distance_lines(rows),
        "Gradients of lambda * loss: norms; at the backbone also the cosine with two of them (in how many batches\n"
        "it is positive); names in brackets are not trained on": _gradient_lines(found["gradients"]),
    }
    parts = [
        f"{title}\n\n{tabulate(lines, headers='firstrow', disable_numparse=True, stralign='right')}"
        for title, lines in tables.items()
    ]
    return "\n\n".join([first, *parts])


def _bank_lines(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = [["", "written", "valid", "rows", "any", "full"]]
    for name, row in rows.items():
        bank = row["bank"]
        takes_part = [str(bank[rule]) if name == "all" else "yes" if bank[rule] else "no" for rule in ("any", "full")]
        lines.append([name, *(str(bank[key]) for key in ("written", "valid", "capacity")), *takes_part])
    return lines


def _region_lines(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    sides = [f"{domain}\n{what}" for domain in ("source", "target") for what in ("an image", "images %", "accepted")]
    lines = [["", *sides, "purity\n%", "of the\naccepted", "of the own\nnearest"]]
    for name, row in rows.items():
        line = [name]
        for side in (row["source"], row["target"]):
            line += [_number(side["regions"]), _percent(side["images"]), _number(side["accepted"])]
        lines.append([*line, *map(_percent, row["target"]["purity"].values())])
    return lines


def _distance_lines(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = [["", "own", "other", "in bank", "feature", "own /\nfeature", "own nearest\n%", "zero features\n%"]]
    for name, row in rows.items():
        distance = row["distance"]
        own, feature = distance["own"], distance["feature"]
        relative = own / feature if own is not None and feature else None
        numbers = (own, distance["other"], row["bank"]["spacing"], feature, relative)
        lines.append([name, *map(_number, numbers), *map(_percent, (distance["own_nearest"], distance["zeros"]))])
    return lines


def _gradient_lines(gradients: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = [["", "lambda", "loss", "|features|", "|backbone|", "cos adv", f"cos {TRUTH}"]]
    for name, row in gradients.items():
        numbers = [_number(row[key]) for key in ("weight", "loss", "features", "backbone")]
        cosines = [_cosine(row[f"cosine {other}"]) for other in ("adv", TRUTH)]
        lines.append([name if row["trained"] else f"({name})", *numbers, *cosines])
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cosine(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['mean']:.3g} ({found['positive']} of {found['batches']})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _trained(config: Config) -> set[str]:
    """Names of the gradients that a method goes by."""
    if config.method == "target-only":
        return {TRUTH}
    names = {"seg", "seg_target"} | ({"adv"} if config.adversarial else set())
    return names | ({"stuff", "instance", "matching"} if config.method == "aa+sim" else set())


def _restore(path: Path, state: dict[str, Any], config: Config, device: torch.device) -> Trainer:
    stored = Config.from_dict(state["config"], str(path))
    require_same_names("classes", path, stored.classes, config.classes)
    stored = stored.to_dict()
    for name in FIXED:
        if (now := config.to_dict()[name]) != stored[name]:
            raise ValueError(f"{name}: must stay {stored[name]!r}, as {path} was trained, got {now!r}")
    if config.precision == "fp16" and "scaler" not in state:
        raise ValueError(f"precision: must not be fp16, which {path} was not trained in, got 'fp16'")
    # Plain, whatever the run did: a fused network gives its features' consumers a tensor each.
    plain = {"step_mode": "eager", "fuse": ("none",), "memory": "usual", "engines": "torch"}
    trainer = build_trainer(dataclasses.replace(config, **plain), device, state)
    trainer.model.train()
    return trainer


def _batches(config: Config, path: Path, device: torch.device) -> Iterator[tuple[Batch, Tensor | None]]:
    """Training batches from the first on, with pseudo labels in stage 2; and the target's true labels, if there are."""
    # target-only has no part "source", whatever its settings name.
    data = dataclasses.replace(config, method="aa") if config.method == "target-only" else config
    folder = None
    if config.stage == 2:
        folder = config.pseudo_labels or path.parent / "pseudo-labels"
        require_labels(folder, config.classes.names)
    source, target, labelled = open_source(data), open_part(data, "target", folder), _labelled_target(config)
    loader = partial(
        DomainLoader,
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        flip=config.flip,
        device=device,
    )
    if labelled is None:
        yield from ((batch, None) for batch in loader(target))
    elif folder is None:
        yield from ((batch._replace(target_labels=None), batch.target_labels) for batch in loader(labelled))
    else:
        for batch, other in zip(loader(target), loader(labelled), strict=True):
            yield batch, other.target_labels


def _labelled_target(config: Config) -> Any:
    """The target part with its own labels, which training leaves alone; None where it has none."""
    arguments = arguments_of(config)["target"] | {"labelled": True, "ids": config.target_ids}
    for cache in dict.fromkeys((config.cache, None)):  # a cache has them for target-only alone
        try:
            return open_dataset(**arguments, cache=cache)
        except ValueError as error:
            reason = error
    log.info("no labels of the target, hence no purity: %s", reason)
    return None


@torch.no_grad()
def _fill_banks(trainer: Trainer, batches: Iterator[tuple[Batch, Tensor | None]]) -> None:
    for batch, _ in batches:
        terms = _terms(trainer, batch, "source")
        trainer.matching.remember(terms.features, terms.labels, trainer.model.classify)


def _terms(trainer: Trainer, batch: Batch, domain: str) -> Terms:
    if domain == "target":
        return trainer.target_terms(batch.target_images, batch.target_labels)
    config = trainer.config
    source = transfer(config.transfer, batch.source_images, batch.target_images, config.fda_beta)
    return trainer.source_terms(source, batch.source_labels)
