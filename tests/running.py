"""Training runs as a user starts them, in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simfast.cli import call
from simfast.cli.commands import COMMANDS
from simfast.cli.parse import parse
from simfast.config import Config
from simfast.models import checkpoint


def train(argv: Sequence[str]) -> dict[str, Any]:
    """The result of `simfast train ARGV`."""
    return call(["train", *argv])


def settings_of(argv: Sequence[str]) -> Config:
    """The settings of `simfast train ARGV`."""
    return parse(["train", *argv], COMMANDS).config


def save_run(path: Path, config: Config) -> None:
    """A checkpoint as of a run with these settings, or as stored, before its first step and without its networks."""
    stored = config if isinstance(config, dict) else config.to_dict()
    begun = {"step": 0, "best": None, "last": None, "convention": "rgb"}
    begun |= {"random": checkpoint.random_state(), "model": {}, "optimizer": {}}
    checkpoint.save(path, begun | {"config": stored})


def data_of(settings: Sequence[str]) -> list[str]:
    """What of a training run's command line names its data."""
    command, reads = iter(settings), {"--" + name.replace("_", "-") for name in COMMANDS["prepare"].READS}
    found, kept = [], False
    for argument in command:
        kept = argument in reads if argument.startswith("--") else kept
        found += [argument] if kept else []
    return found
