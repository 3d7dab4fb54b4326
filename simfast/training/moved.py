"""Where a run's files are, after it has moved to another folder or machine."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from simfast.config import Config
from simfast.config.config import OF_EACH_SOURCE

log = logging.getLogger("simfast")
# The settings that are files or folders which training reads: those of the data, without which no run goes on, and all.
DATA = ("source_root", "source_ids", "source_images", "target_root", "target_ids", "eval_images")
PLACES = (*DATA, "pseudo_labels", "stage1", "cache", "weights")


def places_of(config: Config) -> dict[str, list[str | None]]:
    """Each of these settings as absolute paths, for a checkpoint: its settings have them as they were given."""
    return {name: [path and str(path.absolute()) for path in _paths(config, name)] for name in PLACES}


def found_again(config: Config, resumed: dict[str, Any]) -> Config:
    """The settings with the absolute path in place of each relative one that is not there from this working folder,
    while its absolute one is.

    Args:
        config: of the run that goes on, as given now.
        resumed: its checkpoint.
    """
    places, found = resumed.get("places", {}), {}
    for name in PLACES:
        now, absolute = _paths(config, name), places.get(name)
        if not isinstance(absolute, list) or len(absolute) != len(now):
            continue
        paths = [_found(name, *pair) for pair in zip(now, absolute, strict=True)]
        if paths != now:
            found[name] = tuple(paths) if name in OF_EACH_SOURCE else paths[0]
    return dataclasses.replace(config, **found)


def is_lost(config: Config) -> bool:
    """Whether data are not there."""
    return any(path is not None and not path.exists() for name in DATA for path in _paths(config, name))


def _found(name: str, path: Path | None, absolute: str | None) -> Path | None:
    if path is None or absolute is None or path.is_absolute() or path.exists():
        return path
    # Of another setting than the one that was stored, the path ends otherwise.
    same = Path(absolute).parts[-len(path.parts) :] == path.parts
    if not same or not Path(absolute).exists():
        return path
    log.info("%s: %s is not here, so it means %s, where the run began", name, path, absolute)
    return Path(absolute)


def _paths(config: Config, name: str) -> list[Path | None]:
    value = getattr(config, name)
    return list(value) if name in OF_EACH_SOURCE else [value]
