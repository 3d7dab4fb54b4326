"""Reads a whole data set before a long run does, and tells everything that is wrong with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from simfast.config.classes import IGNORE, Classes
from simfast.data import open_dataset
from simfast.data.cache import CachedDataset, verify
from simfast.data.dataset import SegmentationDataset
from simfast.data.processes import spread

ITEMS_PER_JOB = 16


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found.

    Attributes:
        images: how many there are, readable or not.
        problems: a sentence a problem, each with the file's name, in the order of the items.
        pixels: int64 [256], pixels of each train id in the labels as they are trained on or scored at; None unlabelled.
        class_ids: train ids that the labels can hold.
    """

    images: int
    problems: list[str]
    pixels: np.ndarray | None = None
    class_ids: tuple[int, ...] = ()


def check_part(
    name: str, root: Path | None, split: str, size: tuple[int, int], workers: int, **options: Any
) -> DataReport:
    """`check_data` of what `open_dataset` opens by these arguments; what keeps it from opening is a problem too."""
    try:
        dataset = open_dataset(name, root, split, size, complete=False, **options)
    except ValueError as error:
        return DataReport(0, [str(error)])
    return check_data(dataset, workers)


def check_data(dataset: SegmentationDataset | CachedDataset, workers: int) -> DataReport:
    """Reads every item as training does, and goes on where one is bad; of a cache, also every checksum.

    Args:
        dataset: opened with complete=False to have missing files among the problems.
        workers: processes that read; 0 = this one.
    """
    problems = list(dataset.problems)
    if isinstance(dataset, CachedDataset):
        problems += verify(dataset.part, workers)
    starts = range(0, len(dataset), ITEMS_PER_JOB)
    jobs = [range(first, min(first + ITEMS_PER_JOB, len(dataset))) for first in starts]
    pixels, found = np.zeros(256, np.int64), []
    for first, counts, sentences in spread(_check_items, dataset, jobs, workers, len(dataset), "check"):
        pixels += counts
        found.append((first, sentences))
    for _, sentences in sorted(found):
        problems += sentences
    labelled = bool(pixels.any())
    return DataReport(len(dataset), problems, pixels if labelled else None, dataset.class_ids)


def report_text(reports: dict[str, DataReport], classes: Classes, most: int = 20) -> str:
    """What `check_part` found of each part, to be read: problems first, then the share of each class in the labels.

    Args:
        reports: title -> report.
        classes: the class list.
        most: problems listed of a part; the others are counted.
    """
    lines = []
    for title, report in reports.items():
        bad = f"problems: {len(report.problems)}" if report.problems else "no problem"
        lines += [f"{title}: {report.images} images, {bad}", *(f"  {text}" for text in report.problems[:most])]
        if len(report.problems) > most:
            lines.append(f"  ... and {len(report.problems) - most} more")
    labelled = {title: report for title, report in reports.items() if report.pixels is not None}
    if labelled:
        rows = [
            [name, *(_share(report, i) for report in labelled.values())]
            for i, name in [*enumerate(classes.names), (IGNORE, "don't care")]
        ]
        table = tabulate(rows, headers=["pixels, %", *labelled], disable_numparse=True, stralign="right")
        lines += ["", table]
    return "\n".join(lines)


def _share(report: DataReport, i: int) -> str:
    if i != IGNORE and i not in report.class_ids:
        return "-"
    return f"{100 * report.pixels[i] / report.pixels.sum():.3f}" if report.pixels[i] else "none"


def _check_items(dataset: SegmentationDataset | CachedDataset, items: range, tick) -> tuple[int, np.ndarray, list[str]]:
    pixels, problems = np.zeros(256, np.int64), []
    for i in items:
        for kind, read in (("image", dataset.image), ("label", dataset.label)):
            try:
                content = read(i)
            except ValueError as error:
                # What was missing when the data set was opened has been told.
                if not (dataset.problems and isinstance(error.__cause__, FileNotFoundError)):
                    problems.append(str(error))
                continue
            if kind == "label":
                pixels += np.bincount(content.numpy().ravel(), minlength=256)
        tick()
    return items.start, pixels, list(dict.fromkeys(problems))
