"""Training runs as a user starts them, in this process."""

from collections.abc import Sequence
from typing import Any

from simfast.cli import call
from simfast.cli.commands import COMMANDS
from simfast.cli.parse import parse
from simfast.config import Config


def train(argv: Sequence[str]) -> dict[str, Any]:
    """The result of `simfast train ARGV`."""
    return call(["train", *argv])


def settings_of(argv: Sequence[str]) -> Config:
    """The settings of `simfast train ARGV`."""
    return parse(["train", *argv], COMMANDS).config
