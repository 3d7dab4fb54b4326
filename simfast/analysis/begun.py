"""Runs that are there when an ablation begins: whether they are those of its rows, and with what they go on."""

from pathlib import Path
from typing import Any

from simfast.analysis.rows import Run
from simfast.config import COMMAND_LINE_ONLY, FREE_ON_RESUME, MOVABLE, Config
from simfast.config.config import OF_EACH_SOURCE, of_what_kind, told_apart
from simfast.config.yaml_text import is_empty, read_mapping
from simfast.models import checkpoint

SETTINGS = "settings.yaml"
"""In a run's folder, what `ablate` has it do."""
# What of MOVABLE says nothing of the data: those of a run that is done are compared by nobody.
COMPUTING = {"device", "step_mode", "engines", "skip_bad_files"}


def options_to_go_on(config: Config) -> list[str]:
    """For `train --resume`, all that may differ from what a run was begun with."""
    options = []
    for name in sorted((FREE_ON_RESUME | MOVABLE) - COMMAND_LINE_ONLY):
        value = getattr(config, name)
        options += [f"--{name.replace('_', '-')}={one}" for one in (value if name in OF_EACH_SOURCE else [value])]
    return options


def require_same_run(run: Run) -> None:
    """
    Raises:
        ValueError: a run that is there was begun with other settings, as far as they are not free where it goes on:
            one table is never of two kinds of runs.
    """
    path = run.config.out / SETTINGS
    if (found := _begun_with(run, path)) is None:
        return
    begun, where = found
    # A run that goes on reads no weights, so nothing compares them.
    free = (FREE_ON_RESUME - {"steps"}) | (COMPUTING if run.done else MOVABLE - {"weights"})
    before, now = begun.to_dict(), run.config.to_dict()
    for key in now:
        old, new, given = before[key], now[key], getattr(run.config, key)
        if any(isinstance(one, Path) for one in (given if isinstance(given, tuple) else [given])):
            old, new = _last_parts(old), _last_parts(new)  # the file or folder may have moved since
        if (old != new and key not in free) or of_what_kind(key, begun) != of_what_kind(key, run.config):
            old, new = told_apart(key, begun, run.config)
            raise ValueError(f"{where}: {key} must stay {old!r} as the run was begun, got {new!r}")


def _begun_with(run: Run, path: Path) -> tuple[Config, Path] | None:
    """The settings that a run was begun with, and the file that has them; None where it is not.

    Raises:
        ValueError: nothing says which, as after a power loss; names the file.
    """
    if path.exists() and not is_empty(path.read_bytes()):
        # A setting that did not exist then has its default.
        return Config.from_dict(read_mapping(path), str(path)), path
    last = run.config.out / checkpoint.LAST
    if last.exists():
        return Config.from_dict(checkpoint.load_run(last)["config"], str(last)), last
    if run.done:
        came = "an empty file" if path.exists() else "no file"
        remedy = f"copy the run's config.yaml to it, or remove {path.parent} to train it anew"
        raise ValueError(f"{path}: must have the settings that the run was begun with, got {came}; {remedy}")
    return None


def _last_parts(stored: Any) -> Any:
    """Of a path as it is stored, its name; of a list, of each."""
    return [_last_parts(one) for one in stored] if isinstance(stored, list) else stored and Path(stored).name
