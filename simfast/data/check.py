"""Reads a data set before a long run does, all of it or a sample, and tells what is wrong and what is suspicious."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from simfast.config import Config
from simfast.config.classes import IGNORE, Classes
from simfast.data import open_dataset
from simfast.data.cache import CachedDataset, verify
from simfast.data.inspection import Inspection, inspect
from simfast.data.order import GO_ON, Dataset
from simfast.data.overlap import files_of
from simfast.data.parts import without_report
from simfast.data.processes import spread
from simfast.data.suspicions import Found, all_void, suspicions

ITEMS_PER_JOB = 16
SAMPLE = 32
SCORED = ("held-out", "report")
"""The parts that nothing is trained on."""
MOST_NAMED = 5
LEGEND = {"none": "not one pixel", "-": "a class that these labels do not have"}
"""What stands in the table for a share."""
_DIFFERS = re.compile(r"\S*/\S+|\(\d+ bytes not processed\)|\(x, y\) = \(\d+, \d+\)")
"""What sentences about one fault differ in from file to file, behind the file's own name."""


@dataclass(frozen=True)
class DataReport:
    """What `check_data` or `check_sample` found.

    Attributes:
        images: how many there are, readable or not, looked at or not.
        problems: a sentence a problem, each with the file's name, in the order of the items.
        warnings: a sentence for each thing that can be read, but is probably not meant.
        passed_over: a sentence for each kind of file that lies there and is not read.
        pixels: int64 [256], pixels of each train id in the labels as they are trained on or scored at; None unlabelled.
        class_ids: train ids that the labels can hold.
        files: of the images, where they are at hand.
    """

    images: int
    problems: list[str]
    warnings: list[str]
    passed_over: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    class_ids: tuple[int, ...] = ()
    files: Sequence[Path] = ()


def check_part(
    name: str,
    root: Path | None,
    split: str,
    size: tuple[int, int],
    workers: int,
    *,
    part: str = "source",
    **options: Any,
) -> DataReport:
    """`check_data` of what `open_dataset` opens by these arguments; what keeps it from opening is a problem too."""
    try:
        dataset = open_dataset(name, root, split, size, complete=False, **options)
    except (OSError, ValueError) as error:
        return DataReport(0, [str(error)], [])
    return check_data(dataset, workers, part)


def check_data(dataset: Dataset, workers: int, part: str = "source") -> DataReport:
    """Reads every item as training does, and goes on where one is bad; of a cache, also every checksum.

    Args:
        dataset: opened with complete=False to have missing files among the problems.
        workers: processes that read; 0 = this one.
        part: which of `simfast.data.parts.arguments_of` it is.
    """
    problems = list(dataset.problems)
    cached = isinstance(dataset, CachedDataset)
    if cached:
        problems += verify(dataset.part, workers)
    starts = range(0, len(dataset), ITEMS_PER_JOB)
    jobs = [range(first, min(first + ITEMS_PER_JOB, len(dataset))) for first in starts]
    found = spread(_inspect_all, dataset, jobs, workers, len(dataset), "check")
    told = {_file_of(problem) for problem in problems}  # of a shard that is damaged, each item says so, too
    items = [item for items in found for item in items]
    return _report(dataset, part, problems, [item.without(told) for item in items] if cached else items)


def check_sample(dataset: Dataset, part: str, seconds: float, labels: bool = True) -> DataReport:
    """The same of a few items, evenly spread. Where their labels have no pixel of any class, it looks for one further
    on, through all of them if need be.

    Args:
        dataset: of any kind.
        part: which of `simfast.data.parts.arguments_of` it is.
        seconds: after which no other item is begun.
        labels: False leaves them unread.
    """
    end, items = time.monotonic() + seconds, []
    order = _evenly_spread(len(dataset))
    for i in order[:SAMPLE]:
        if items and time.monotonic() > end:
            break
        items.append(inspect(dataset, i, label=labels))
    classes = {train for item in items for train in item.pixels} - {IGNORE}
    for i in order[len(items) :] if any(item.pixels for item in items) else ():
        # The only class of a sample may have rare ones beside it; to have none is worth all the time it takes.
        if len(classes) > 1 or (classes and time.monotonic() > end):
            break
        items.append(inspect(dataset, i, image=False))
        classes |= set(items[-1].pixels) - {IGNORE}
    return _report(dataset, part, [], items)


def require_sound(found: DataReport, part: str, config: Config) -> list[str]:
    """What is suspicious in a sample of a part, with the bad files that a run may pass over where it trains on it.

    Args:
        found: of `check_sample`.
        part: as there.
        config: the run's settings.

    Raises:
        ValueError: what cannot be read or trained on, and what helps.
    """
    void = found.pixels is not None and not found.pixels[:IGNORE].any()
    can_skip = part not in SCORED and not void
    if can_skip and len(found.problems) <= config.skip_bad_files:
        return [*found.warnings, *found.problems]
    if found.problems:
        more = f" (problems in a sample: {len(found.problems)}; `simfast check-data` lists all)"
        few = can_skip and 2 * len(found.problems) <= min(found.images, SAMPLE)
        remedy = f"; {GO_ON}" if few else f"; give {without_report(config)}" if part == "report" else ""
        raise ValueError(found.problems[0] + (more if len(found.problems) > 1 else "") + remedy)
    return found.warnings


def _report(dataset: Dataset, part: str, problems: Sequence[str], items: Iterable[Inspection]) -> DataReport:
    found = Found(dataset, items, part)
    problems, warnings = [*problems, *(text for item in found.items for text in item.problems)], suspicions(found)
    if void := all_void(found):
        # Nothing can be learned from it; what cannot be scored is a pity.
        (warnings if part in SCORED else problems).append(void)
    pixels = np.zeros(256, np.int64)
    for train, count in found.pixels.items():
        pixels[train] = count
    counted = pixels if found.labelled else None
    files = files_of(dataset)
    return DataReport(len(dataset), problems, warnings, dataset.passed_over, counted, dataset.class_ids, files)


def _inspect_all(dataset: Dataset, items: range, tick) -> list[Inspection]:
    found = []
    for i in items:
        found.append(inspect(dataset, i))
        tick()
    return found


def _evenly_spread(num: int) -> list[int]:
    """All of range(num), in such an order that the first of them, however many, lie at about equal distances."""
    bits = max(1, (num - 1).bit_length())
    order = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [i for i in order if i < num]


def report_text(reports: dict[str, DataReport], classes: Classes, most: int = 20) -> str:
    """What `check_part` found of each part, to be read: problems first, then the share of each class in the labels.

    Args:
        reports: part -> report.
        classes: the class list.
        most: kinds of problems listed of a part, each with one file's sentence and some more files' names; the others
            are counted.
    """
    lines = []
    for part, report in reports.items():
        bad = f"problems: {len(report.problems)}" if report.problems else "no problem"
        bad += f", warnings: {len(report.warnings)}" if report.warnings else ""
        lines += [f"{part}: {report.images} images, {bad}", *(f"  {text}" for text in _in_kinds(report.problems, most))]
        lines += [f"  warning: {text}" for text in report.warnings] + [f"  {text}" for text in report.passed_over]
    labelled = {part: report for part, report in reports.items() if report.pixels is not None}
    if labelled:
        rows = [
            [name, *(_share(report, i) for report in labelled.values())]
            for i, name in [*enumerate(classes.names), (IGNORE, "don't care")]
        ]
        table = tabulate(rows, headers=["pixels, %", *labelled], disable_numparse=True, stralign="right")
        shown = {share for _, *shares in rows for share in shares}
        legend = "; ".join(f"{share}: {text}" for share, text in LEGEND.items() if share in shown)
        lines += ["", table, *([legend] if legend else []), *_only_in_one_domain(labelled, classes)]
    return "\n".join(lines)


def _in_kinds(problems: Sequence[str], most: int) -> list[str]:
    """Sentences of which each stands for all that differ in their files alone."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        _, _, rule = problem.partition(": ")
        kinds.setdefault(_DIFFERS.sub("...", rule), []).append(problem)
    lines = []
    for first, *others in list(kinds.values())[:most]:
        lines.append(first)
        if others:
            names = ", ".join(Path(_file_of(other)).name for other in others[:MOST_NAMED])
            more = " ..." if len(others) > MOST_NAMED else ""
            lines.append(f"  the same of {len(others)} more: {names}{more}")
    if left := sum(map(len, list(kinds.values())[most:])):
        lines.append(f"... and {left} more")
    return lines


def _file_of(problem: str) -> str:
    return problem.partition(": ")[0]


def _share(report: DataReport, i: int) -> str:
    if i != IGNORE and i not in report.class_ids:
        return "-"
    return f"{100 * report.pixels[i] / report.pixels.sum():.3f}" if report.pixels[i] else "none"


def _only_in_one_domain(reports: dict[str, DataReport], classes: Classes) -> list[str]:
    """Classes that were found in the labels of one domain and not in those of the other."""
    found: dict[str, set[int]] = {}
    for part, report in reports.items():
        domain = "source" if part.startswith("source") else "target"
        found.setdefault(domain, set()).update(i for i in range(len(classes)) if report.pixels[i])
    if len(found) < 2:
        return []
    lines = []
    for domain, other in (("source", "target"), ("target", "source")):
        if alone := sorted(found[domain] - found[other]):
            names = ", ".join(classes.names[i] for i in alone)
            lines.append(f"labelled in the {domain} alone, never in the {other}'s labels: {names}")
    return ["", *lines] if lines else []
