"""The parts of the data that a run's settings name: source and target to train on, and what is held out."""

from pathlib import Path

from simfast.config import Config
from simfast.data import open_dataset
from simfast.data.folder import SegmentationFolder
from simfast.evaluate import CLASS_SETS


def open_source(config: Config) -> SegmentationFolder:
    """Labelled source images, or those that a transfer put in their place."""
    return open_dataset(
        config.source,
        config.source_root,
        config.source_split,
        config.source_size,
        ids=config.source_ids,
        images=config.source_images,
        cache=config.cache,
    )


def open_target(config: Config, pseudo_labels: Path | None = None, labelled: bool = False) -> SegmentationFolder:
    """Target images to train on: without labels, with pseudo labels, or (target-only) with their own."""
    return open_dataset(
        config.target,
        config.target_root,
        config.target_split,
        config.target_size,
        labelled=labelled or pseudo_labels is not None,
        ids=config.target_ids if labelled else None,
        labels=pseudo_labels,
        cache=config.cache,
    )


def open_held_out(config: Config) -> SegmentationFolder:
    """Labelled target images to score on, labels at the size of their files."""
    return open_dataset(
        config.target,
        config.target_root,
        config.eval_split,
        config.target_size,
        resize_labels=False,
        ids=config.target_ids,
        cache=config.cache,
    )


def scored_classes(config: Config, source: SegmentationFolder, held_out: SegmentationFolder) -> list[int]:
    """The classes whose mean IoU decides which checkpoint is best.

    Raises:
        ValueError: the held-out labels lack a class that was asked for, or source and target have none in common.
    """
    if config.score_classes != "auto":
        wanted = sorted(CLASS_SETS[config.score_classes])
        if not set(wanted) <= set(held_out.class_ids):
            raise ValueError(
                f"score_classes: {config.score_classes} must be among the held-out labels' classes, which are "
                f"{list(held_out.class_ids)}"
            )
        return wanted
    class_ids = sorted(set(source.class_ids) & set(held_out.class_ids))
    if not class_ids:
        raise ValueError(
            f"source and target: must label a class in common, got {source.class_ids}, {held_out.class_ids}"
        )
    return class_ids
