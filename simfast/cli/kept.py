"""Settings that a file or a folder keeps, as far as they hold where a command line says more."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simfast.config import Config
from simfast.config.config import OF_EACH_SOURCE
from simfast.config.settings import GROUPS
from simfast.config.yaml_text import is_empty, read_mapping

log = logging.getLogger("simfast")

APART = ("eval_images", "eval_labels")
# What is said of the target, and of no other data set.
OF_THE_TARGET = ("target_root", "target_split", "target_labels", "target_ids", "eval_split", *APART, "report_split")


def without_other_data(settings: dict[str, Any], source: Sequence[str], target: str | None) -> dict[str, Any]:
    """A file's settings without what it says of data sets that it names, where the command line names others: roots
    and splits of one data set say nothing of another.

    Args:
        settings: of the file.
        source, target: of the command line; empty and None where it names none.
    """
    others: set[str] = set()
    own = settings.get("source")
    if source and own and [*source] != ([own] if isinstance(own, str) else own):
        others |= OF_EACH_SOURCE.keys()
    if target and settings.get("target", target) != target:
        others |= {"target", *OF_THE_TARGET}
    return {name: value for name, value in settings.items() if name not in others}


def of_both_stages(folder: Path) -> Config | None:
    """The settings of a run of both stages, as its folder has them: in config.yaml or, where a power loss left that
    empty, in the checkpoint of a stage. None where it is the folder of another run.

    Raises:
        ValueError: its settings are nowhere; names the file and what to do.
        OSError: a file cannot be read.
    """
    from simfast.models import checkpoint

    path = folder / "config.yaml"
    if not folder.is_dir() or (folder / checkpoint.LAST).exists() or not path.exists():
        return None
    if not is_empty(path.read_bytes()):
        stored = Config.from_dict(read_mapping(path), str(path))
        return stored if stored.stage == "all" else None
    for last in (folder / f"stage{stage}" / checkpoint.LAST for stage in (2, 1)):
        if last.is_file():
            log.info("%s: is empty, as after a power loss; the settings are those of %s", path, last)
            stored = Config.from_dict(checkpoint.load(last)["config"], str(last))
            return dataclasses.replace(stored, stage="all", stage1=None)
    raise ValueError(f"{path}: must hold the run's settings, got an empty file; remove {folder}, and begin it again")


def settings_in(path: Path) -> dict[str, Any] | None:
    """What a file holds in the groups of settings, as a run's config.yaml; None where it is something else."""
    try:
        content = read_mapping(path)
    except (ValueError, OSError):
        return None
    return content if GROUPS.keys() & content.keys() else None
