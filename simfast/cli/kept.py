"""Settings that a file or a folder keeps, as far as they hold where a command line says more."""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from simfast.config import FREE_ON_RESUME, MOVABLE, Config
from simfast.config.config import OF_EACH_SOURCE, of_what_kind, told_apart
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


def begun(path: Path) -> Config:
    """The settings of the run to be continued, which --resume names.

    Raises:
        ValueError: they are nowhere, or those of both stages are other ones than those that a stage has begun with.
        OSError: a file cannot be read.
    """
    from simfast.models import checkpoint

    if (both := _of_both_stages(path)) is not None:  # its two runs are inside
        return dataclasses.replace(both, resume=path, out=path)
    path = checkpoint.resolve(path)
    stored = Config.from_dict(checkpoint.load_run(path)["config"], str(path))
    return dataclasses.replace(stored, resume=path, out=path.parent)


def resumed(config: Config, stored: Config) -> Config:
    """The settings to continue with.

    Args:
        config: those that the command line asks for.
        stored: those of the run, as `begun` found them.

    Raises:
        ValueError: one that a run keeps was changed.
    """
    if config.out != stored.out:  # where its best checkpoint and its metrics are
        raise ValueError(f"out: a resumed run stays in its folder {stored.out}, got {config.out}")
    # The second stage has begun from the end of the first one, wherever that was.
    free = (FREE_ON_RESUME | MOVABLE) - ({"steps"} if stored.stage == "all" else set())
    _require_kept(stored, config, free, config.resume)
    if config.stage == "all":
        return config
    _tell_what_does_not_count(stored.out / "config.yaml", config, stored, free)
    return dataclasses.replace(config, resume=stored.resume)


def _of_both_stages(folder: Path) -> Config | None:
    """The settings of a run of both stages, as its folder has them: in config.yaml or, where a power loss left that
    empty, in the checkpoint of a stage. None where it is the folder of another run.

    Raises:
        As `begun`; names the file and what to do.
    """
    from simfast.models import checkpoint

    path = folder / "config.yaml"
    if not folder.is_dir() or (folder / checkpoint.LAST).exists() or not path.exists():
        return None
    of_stages = [folder / f"stage{stage}" / checkpoint.LAST for stage in (2, 1)]
    if not is_empty(path.read_bytes()):
        stored = Config.from_dict(read_mapping(path), str(path))
        if stored.stage != "all":
            return None
        for last in filter(Path.is_file, of_stages):
            try:
                before = Config.from_dict(checkpoint.load_run(last)["config"], str(last))
            except (ValueError, OSError):  # what is damaged is told of where it is needed
                continue
            try:
                _require_kept(before, stored, ((FREE_ON_RESUME | MOVABLE) - {"steps"}) | {"stage"}, last)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            break  # the second stage has begun with the settings of the first
        return stored
    for last in filter(Path.is_file, of_stages):
        log.info("%s: is empty, as after a power loss; the settings are those of %s", path, last)
        stored = Config.from_dict(checkpoint.load(last)["config"], str(last))
        return dataclasses.replace(stored, stage="all", stage1=None)
    raise ValueError(f"{path}: must hold the run's settings, got an empty file; remove {folder}, and begin it again")


def _require_kept(before: Config, now: Config, free: Collection[str], where: Path) -> None:
    """
    Args:
        before, now: of a run and its continuation.
        free: what may differ between them.
        where: what has the settings before.

    Raises:
        ValueError: something else differs.
    """
    was, asked = before.to_dict(), now.to_dict()
    for key in was:
        if was[key] != asked[key] and (key not in free or of_what_kind(key, before) != of_what_kind(key, now)):
            old, new = told_apart(key, before, now)
            raise ValueError(f"{key}: a resumed run keeps its settings ({old!r} in {where}), got {new!r}")


def _tell_what_does_not_count(file: Path, config: Config, stored: Config, free: Collection[str]) -> None:
    """Warns of what a run's settings file says and its checkpoint does not, as after someone has changed it: the run
    is about to write it anew.

    Args:
        file: may be missing, or empty after a power loss.
        config: what the run goes on with.
        stored: what its checkpoint has.
        free: what may be asked for on the command line.
    """
    if not file.is_file() or is_empty(file.read_bytes()):
        return
    try:
        found = Config.from_dict(read_mapping(file), str(file), config)
    except (ValueError, OSError) as error:
        log.warning("%s; it does not count for a resumed run, and is written anew", error)
        return
    there, here, before = (settings.to_dict() for settings in (found, config, stored))
    for key in (key for key in here if there[key] not in (here[key], before[key])):
        remedy = f"; --{key.replace('_', '-')} changes it" if key in free else ", as a resumed run keeps it"
        text = "%s: %s is %s in it, which does not count: the run goes on with %s%s"
        log.warning(text, file, key, *told_apart(key, found, config), remedy)


def settings_in(path: Path) -> dict[str, Any] | None:
    """What a file holds in the groups of settings, as a run's config.yaml; None where it is something else."""
    try:
        content = read_mapping(path)
    except (ValueError, OSError):
        return None
    return content if GROUPS.keys() & content.keys() else None
