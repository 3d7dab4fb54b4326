"""What simfast leaves in folders, and how that is told from photographs."""

import os
from pathlib import Path

KINDS = ("labels", "colour", "overlay")
LIST_FILE = "classes.yaml"
THRESHOLDS_FILE, PROGRESS_FILE = "thresholds.json", ".progress.pt"
"""Of pseudo labels, finished and not."""
_OTHERS = {
    "folders of runs": ("config.yaml", ("last.pt", "best.pt", "metrics.jsonl", "log.txt")),
    "folders of ablations": ("ablation.json", ("ablation.md",)),
    "folders of prepared data": ("images-*.npy", ("index.json", "shard-*.json")),  # of any shard: a kill leaves any
}
"""What such a folder has in any case, and one of which it has, too."""
HEADER = "# What the ids in labels/ are, as `simfast predict` wrote them. With --classes, this file reads them.\n"


def is_own_list(path: Path) -> bool:
    """Whether a file is the list of classes that `simfast predict` writes; not where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline() == HEADER
    except OSError:
        return False


def is_prediction(folder: Path) -> bool:
    """Whether a folder is one of `KINDS` beside the list that `simfast predict` wrote with it."""
    return folder.name in KINDS and is_own_list(folder.parent / LIST_FILE)


def written_here(folder: Path) -> str | None:
    """What a folder holds, a plural, if it is of what `simfast` writes; else None."""
    if is_prediction(folder):
        return "folders of predictions"
    if _holds(folder, THRESHOLDS_FILE) or _holds(folder, PROGRESS_FILE):
        return "folders of pseudo labels"
    for what, (sure, others) in _OTHERS.items():
        if _holds(folder, sure) and any(_holds(folder, other) for other in others):
            return what
    return None


def _holds(folder: Path, name: str) -> bool:
    if "*" not in name:
        return os.path.isfile(folder / name)
    return any(path.is_file() for path in folder.glob(name))
