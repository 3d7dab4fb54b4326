"""The parts of the data that a run's settings name: source and target to train on, and what is held out."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simfast.config import Config
from simfast.data import describe, open_dataset
from simfast.data.cache_index import part_name
from simfast.data.classes import read_ids
from simfast.data.listing import nfc
from simfast.data.order import Dataset, Mixture

log = logging.getLogger("simfast")


def arguments_of(config: Config) -> dict[str, dict[str, Any]]:
    """What `open_dataset` is to be given for each part that training with these settings reads: "source" (not with
    target-only; of several, "source 2" and so on too), "target" and, where there are, "held-out" and "report"; without
    pseudo labels, which are no part of the data, and without the cache."""
    parts = [] if config.method == "target-only" else source_parts(config)
    return {part: _arguments(config, part) for part in [*parts, *_target_parts(config)]}


def _target_parts(config: Config) -> list[str]:
    return ["target", *(["held-out"] if config.scored else []), *([] if config.report_split is None else ["report"])]


def source_parts(config: Config) -> list[str]:
    """The parts that are a source each, in the order of the settings.

    Raises:
        ValueError: two of them are the same files.
    """
    files = [source._replace(share=1) for source in config.sources]
    for source in files:
        if files.count(source) > 1:
            place = "" if source.root is None else f" in {source.root}"
            rule = "must be data sets that differ in --source-root, --source-split or --source-images"
            raise ValueError(f"source: {rule}, got {source.name}{place} twice; --source-share says how much of each")
    return ["source", *(f"source {number}" for number in range(2, len(config.source) + 1))]


def _arguments(config: Config, part: str) -> dict[str, Any]:
    if part.startswith("source"):
        source = config.sources[source_parts(config).index(part)]
        return {
            "name": source.name,
            "root": source.root,
            "split": source.split,
            "size": config.source_size,
            "classes": config.classes,
            "ids": source.ids,
            "images": source.images,
            "label_files": source.labels,
        }
    target = {
        "name": config.target,
        "root": config.target_root,
        "size": config.target_size,
        "classes": config.classes,
        "label_files": config.target_labels,
    }
    if part in ("target", "photographs"):
        own_labels = config.method == "target-only" and part == "target"
        ids = config.target_ids if own_labels else None
        return target | {"split": config.target_split, "labelled": own_labels, "ids": ids}
    if part == "held-out" and not config.scored:
        rule = "must name a labelled part of the target to score on, or --eval-images and --eval-labels a set apart"
        raise ValueError(f"eval_split: {rule}, got {config.eval_split!r}")
    apart = {"image_files": config.eval_images, "label_files": config.eval_labels}
    if part == "held-out" and apart["image_files"] is not None:
        target |= {"name": "folder", "root": None} | apart
    split = config.eval_split if part == "held-out" else config.report_split
    return target | {"split": split, "resize_labels": False, "ids": config.target_ids}


def require_own_parts(config: Config, parts: Iterable[str] | None = None) -> None:
    """
    Args:
        config: the settings.
        parts: of `arguments_of`; None: all of them.

    Raises:
        ValueError: two of them would be one part of the cache, though they are read from different places: it goes by
            names, so that it and the data may move. Says which, and what to do.
    """
    if config.cache is None:
        return
    found: dict[str, tuple[str, list[str | None]]] = {}
    for part in arguments_of(config) if parts is None else parts:
        arguments = _arguments(config, part)
        name = part_name(describe(**arguments))
        here = [folder and os.path.realpath(folder) for folder in (arguments["root"], arguments.get("images"))]
        here += [arguments["split"], arguments["label_files"]]
        other, there = found.setdefault(name, (part, here))
        if there != here:
            one, two = next(pair for pair in zip(there, here, strict=True) if len(set(pair)) > 1)
            # A published set is called what it is called, wherever its root is.
            renamed = arguments["name"] == "folder" or there[0] == here[0]
            remedy = "rename one of them, or give one by a link of another name (ln -s), or " if renamed else ""
            raise ValueError(
                "cache: must have a part for each data set, and goes by names without what lies above them, got "
                f"{name} of {one} ({other}) and {two} ({part}) alike; {remedy}read the files with --cache None"
            )


def open_part(config: Config, part: str, pseudo_labels: Path | None = None) -> Dataset:
    """A part of `arguments_of`; the target with pseudo labels where their folder is given."""
    if config.cache is not None:
        # Parts of source and target differ in more; and what only scores must not ask for the source's files.
        kin = source_parts(config) if part.startswith("source") else _target_parts(config)
        require_own_parts(config, dict.fromkeys([*kin, part]))
    arguments = _arguments(config, part)
    if pseudo_labels is not None:
        arguments |= {"labelled": True, "labels": pseudo_labels}
    try:
        return open_dataset(**arguments, cache=config.cache)
    except ValueError as error:
        remedy = None
        if part == "report":
            remedy = without_report(config)
        elif part == "held-out" and config.eval_images is None:
            remedy = f"--eval-split none where nothing of it is labelled, in place of {config.eval_split!r}; "
            remedy += "--eval-images and --eval-labels for a labelled set apart"
        if remedy is None or config.target_root is None or not config.target_root.is_dir():
            raise
        raise ValueError(f"{error} (of the target; give {remedy})") from error


def without_report(config: Config) -> str:
    """What to give where the part to report on is what keeps a run from its end."""
    return f"--report-split None where its {config.report_split!r} is not to be scored"


def held_out_name(config: Config) -> str:
    """The held-out part, as a reader knows it; with the id map that its labels are read by, where one is set."""
    name = f"{config.target} {config.eval_split}" if config.eval_images is None else str(config.eval_images)
    return name if config.target_ids is None else f"{name}, labels read by {config.target_ids}"


def open_source(config: Config) -> Dataset | Mixture:
    """The labelled data that the settings name, mixed by share where it is several data sets."""
    datasets = [open_part(config, part) for part in source_parts(config)]
    return Mixture(datasets, [source.share for source in config.sources]) if len(datasets) > 1 else datasets[0]


def inventory(config: Config, parts: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """What the data of a run are, wherever they lie: {part: {"images", "names", "class_ids", "ids"}}.

    images: how many; names: a hash of their names in order; where labels are read, class_ids: what they can hold; ids:
    the user's id map of label files as [[id, train id], ...], or None.
    """
    found = {}
    for part, dataset in parts.items():
        digest = hashlib.blake2b("\n".join(map(nfc, dataset.names)).encode(errors="surrogateescape"), digest_size=16)
        ids = _arguments(config, part)["ids"]
        table = None if ids is None else sorted(map(list, read_ids(ids, config.classes).items()))
        found[part] = {"images": len(dataset), "names": digest.hexdigest()}
        if part != "target" or config.method == "target-only":  # whose labels are read
            found[part] |= {"class_ids": list(dataset.class_ids), "ids": table}
    return found


def require_same_data(stored: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """
    Args:
        stored, now: of `inventory`, when the run began and now.
        where: the checkpoint, for the error.

    Raises:
        ValueError: a part is not what it was; says which, what differs and what to do.
    """
    kinds = {"images": "as many images", "names": "images of the same names in the same order"}
    kinds |= {"class_ids": "labels of the same classes", "ids": "the same id map"}
    for part in (part for part in now if part in stored and part != "report"):
        for key, rule in kinds.items():
            old, new = stored[part].get(key), now[part].get(key)
            if old != new:
                came = ("other ones" if key == "names" else f"{new}, not {old}") + f" (of {now[part]['images']} images)"
                remedy = "give where they lie now, as --source-root or --target-root, or begin a new run"
                raise ValueError(f"{part}: must have {rule} as when {where} was written, got {came}; {remedy}")


_OTHER_PART = {"held-out": "another --eval-split or --eval-images", "report": "another --report-split, or None"}


def scored_classes(config: Config, labelled: Dataset | Mixture, scored: Dataset, part: str = "held-out") -> list[int]:
    """The classes of the mean IoU, which on the held-out part decides which checkpoint is best.

    Args:
        labelled: what is trained on with labels.
        scored: what is scored on.
        part: which part that is, "held-out" or "report".

    Raises:
        ValueError: its labels lack a class that was asked for, or the two have none in common.
    """
    if config.score_classes != "auto":
        return asked_classes(config, scored, part)
    class_ids = sorted(set(labelled.class_ids) & set(scored.class_ids))
    if not class_ids:
        came = f"{labelled.class_ids}, {scored.class_ids}; give {_OTHER_PART[part]}"
        raise ValueError(f"source and target: must label a class in common, got {came}")
    return class_ids


def asked_classes(config: Config, scored: Dataset, part: str = "held-out") -> list[int]:
    """The classes of the score set that the settings name; arguments and errors as `scored_classes`."""
    sets, names = config.classes.sets, config.classes.names
    wanted, there = sorted(sets[config.score_classes]), set(scored.class_ids)
    if lacking := [names[c] for c in wanted if c not in there]:
        rule = f"must be a set whose every class the {part} labels can have"
        came = f"{config.score_classes}, and they lack {', '.join(lacking)}"
        others = ["auto", *(name for name, class_ids in sets.items() if set(class_ids) <= there)]
        # Which a resumed run keeps.
        remedy = "" if config.resume else f"--score-classes {' or '.join(others)}, or "
        raise ValueError(f"score_classes: {rule}, got {came}; give {remedy}{_OTHER_PART[part]}")
    return wanted


def warn_if_void(row: dict[str, Any], scored: Dataset) -> None:
    """Logs a warning that names the folder of the labels where they left nothing to score.

    Args:
        row: of metrics, from scoring on `scored`.
    """
    if row["pixel_accuracy"] is None:  # it is over the labelled pixels
        where, rule = scored.read_from.get("labels"), "every pixel of all %d label maps is don't care (255)"
        log.warning(f"%s: {rule}, so there is no score", where, len(scored))
