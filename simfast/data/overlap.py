"""Images that are scored on and trained on, too: a score on them says little of others."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from simfast.config import Config
from simfast.data.cache import CachedDataset
from simfast.data.listing import places
from simfast.data.order import Dataset

log = logging.getLogger("simfast")


def files_of(dataset: Dataset) -> Sequence[Path]:
    """The files of its images; of a cache none where they are not at hand."""
    return dataset.made_from if isinstance(dataset, CachedDataset) else dataset.images


def overlaps(config: Config, images: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    """A sentence for each part that is trained on and shares images with one that is scored on, by the latter.

    Args:
        config: the settings.
        images: the files of each part of `simfast.data.parts.arguments_of`, as far as they are at hand.
    """
    options = {"held-out": "--eval-images" if config.eval_images else "--eval-split", "report": "--report-split"}
    unread = () if config.trains_on_target else ("target",)
    there = {part: _by_place(files) for part, files in images.items() if files and part not in unread}
    found: dict[str, list[str]] = {}
    for scored in options.keys() & there.keys():
        folder = os.path.commonpath([os.path.abspath(file.parent) for file in images[scored]])
        for trained in (part for part in there if part not in options):
            if both := there[scored].keys() & there[trained].keys():
                example = min(there[scored][place] for place in both)
                split = "--target-split" if trained == "target" else "--source-split"
                found.setdefault(scored, []).append(
                    f"{folder}: images to score on are to be others than those to train on, got {len(both)} of "
                    f"{len(there[scored])} in the {trained}, too, such as {example}; {split} and {options[scored]} "
                    "name what is apart, of a folder also as lists of files (.txt)"
                )
    return found


def require_apart(config: Config, parts: Mapping[str, Dataset]) -> None:
    """Logs a warning of each overlap.

    Args:
        config: the settings.
        parts: by their names, as far as they are read.

    Raises:
        ValueError: an overlap with target-only, which trains on the very labels that are scored on.
    """
    for part, sentences in overlaps(config, {part: files_of(dataset) for part, dataset in parts.items()}).items():
        for text in sentences:
            if config.method == "target-only":
                raise ValueError(text)
            log.warning("%s: %s", part, text)


def _by_place(files: Sequence[Path]) -> dict[tuple[str, str], Path]:
    """Files by where they lie, and not the links to them that a split may be made of."""
    real = (Path(os.path.realpath(file)) if file.is_symlink() else file for file in files)
    return dict(zip(places(real), files, strict=True))
