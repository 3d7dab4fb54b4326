"""What `simfast predict` leaves in a folder, and how that is told from photographs."""

from pathlib import Path

KINDS = ("labels", "colour", "overlay")
LIST_FILE = "classes.yaml"
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
