"""What a run reads: batches to train on, and what it is looked at by."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simfast.config import Config
from simfast.data.loader import DomainLoader
from simfast.data.order import Dataset, Mixture
from simfast.data.overlap import require_apart
from simfast.data.parts import inventory, open_part, open_source, require_same_data, scored_classes, source_parts
from simfast.runtime import distributed
from simfast.training.first_look import first_look
from simfast.training.looks import Scoring, Watching

log = logging.getLogger("simfast")


class RunData(NamedTuple):
    """
    Attributes:
        loader: training batches, this process's share of them.
        labelled: what is trained on with labels.
        looks: what the run is looked at by.
        report: what is scored once more at its end, if anything.
        inventory: `simfast.data.parts.inventory` of what it trains on and is looked at by.
    """

    loader: DomainLoader
    labelled: Dataset | Mixture
    looks: Scoring | Watching
    report: Dataset | None
    inventory: dict[str, Any]


def open_data(
    config: Config,
    device: torch.device,
    position: int,
    pseudo_labels: Path | None,
    resumed: dict[str, Any] | None = None,
) -> RunData:
    """All data of a run, with training batches from a position on. target-only trains on the target's labels as
    source-only does on the source's. At position 0 all of it is checked by a sample.

    Args:
        config: the run's settings.
        device: where the batches are to be.
        position: steps done.
        pseudo_labels: folder of the target's pseudo labels, if there are any.
        resumed: the checkpoint that the run goes on from.

    Raises:
        ValueError: what is missing, or not the data that the run began with.
    """
    target = open_part(config, "target", pseudo_labels)
    labelled = target if config.method == "target-only" else open_source(config)
    looks = (Scoring if config.scored else Watching)(config, labelled, device)
    report = None if config.report_split is None else open_part(config, "report")
    if report is not None:
        scored_classes(config, labelled, report, "report")  # what is not there shows now
    seen = target if config.uses_target or config.transfer != "none" else None
    parts = {"target": seen, "held-out": looks.scored} | source_of(config, labelled)
    parts = {part: dataset for part, dataset in parts.items() if dataset is not None}
    if position == 0:
        distributed.on_lead(require_apart, config, parts | ({} if report is None else {"report": report}))
        apart = {"held-out": looks.scored, "report": report}
        distributed.on_lead(first_look, config, labelled, seen, apart, pseudo_labels is not None)
    data = inventory(config, parts)
    if resumed and "data" in resumed:
        require_same_data(resumed["data"], data, config.resume)
    share = {"skip": config.skip_bad_files, "rank": distributed.rank(), "ranks": distributed.size()}
    loader = DomainLoader(
        labelled, seen, config.batch_size, config.seed, config.workers, config.flip, position, device, **share
    )
    if resumed and distributed.is_lead():  # whose they are: the others count theirs anew
        loader.skipped |= resumed.get("bad_files", {})
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
    return RunData(loader, labelled, looks, report, data)


def source_of(config: Config, labelled: Dataset | Mixture) -> dict[str, Dataset]:
    """What is trained on with labels, by the names of its parts."""
    if config.method == "target-only":
        return {"target": labelled}
    datasets = labelled.datasets if isinstance(labelled, Mixture) else (labelled,)
    return dict(zip(source_parts(config), datasets, strict=True))
