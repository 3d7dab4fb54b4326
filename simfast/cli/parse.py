"""Settings from a command line: those of `simfast train`, and of the commands beside it."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
import yaml

from simfast.config import COMMAND_LINE_ONLY, FREE_ON_RESUME, Config
from simfast.config.presets import PRESETS, RECIPES
from simfast.models import checkpoint

Command = TypeVar("Command")


def parse(argv: list[str]) -> Config:
    """The settings of a command line of `train.py`, with preset, recipe, file, stage 1 and resumed run resolved.

    Raises:
        SystemExit: after printing what was wrong with the command line, or its help.
    """
    try:
        base = starting_point(argv)
        config = tyro.cli(Config, args=argv, default=base, prog="train.py")
        if config.resume is not None:
            _check_resumed(config, base)
            if config.stage != "all":
                config = dataclasses.replace(config, resume=checkpoint.resolve(config.resume))
        return config
    except (ValueError, OSError) as error:
        raise SystemExit(f"train.py: {error}") from None


def starting_point(argv: list[str], stored: Config | None = None) -> Config:
    """What a command line's settings change: a resumed run's, or those of preset, recipe and file, in this order.

    Args:
        argv: the command line.
        stored: settings that came with a checkpoint; they are the starting point where no preset or file is named, and
            their recipe is where none is.

    Raises:
        ValueError, OSError: naming the file or setting.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--recipe", "--config", "--resume", "--device", "--stage", "--stage1"):
        early.add_argument(name)
    known, _ = early.parse_known_args(argv)
    if known.resume is not None:
        return _resumed(Path(known.resume))
    if known.stage == "2" and known.stage1 is not None and stored is None:
        # Stage 2 repeats stage 1 with pseudo labels added: its settings are the ones to repeat.
        first = checkpoint.load(checkpoint.resolve(Path(known.stage1), "best.pt"))
        stored = Config.from_dict(first["config"], known.stage1) if "config" in first else None
    settings = _read_settings(Path(known.config)) if known.config is not None else {}
    recipe = known.recipe or settings.get("recipe", stored.recipe if stored else "paper")
    if recipe not in RECIPES:
        raise ValueError(f"recipe: must be one of {', '.join(RECIPES)}, got {recipe!r}")
    if stored is not None and known.preset is None and known.config is None:
        base = dataclasses.replace(stored, out=None, resume=None)
        return base if known.recipe is None else Config.from_dict(RECIPES[recipe], "recipe", base)
    preset = known.preset or settings.get("preset", "auto")
    if preset == "auto":
        device = known.device or settings.get("device", "auto")
        preset = "streets-gpu" if device != "cpu" and torch.cuda.is_available() else "streets"
    if preset not in PRESETS:
        raise ValueError(f"preset: must be one of auto, {', '.join(PRESETS)}, got {preset!r}")
    base = Config.from_dict(RECIPES[recipe], "recipe", dataclasses.replace(PRESETS[preset], preset=preset))
    return Config.from_dict(settings, str(known.config), dataclasses.replace(base, recipe=recipe))


def parse_command(command: type[Command], argv: list[str], stored: Config | None = None) -> Command:
    """One of `simfast`'s commands: a dataclass whose field `config` takes every setting of `train.py` as well.

    Args:
        command: the dataclass; its docstring is the help.
        argv: what follows the command's name.
        stored: settings that came with the checkpoint that the command is about.
    """
    defaults = {
        field.name: field.default if field.default is not dataclasses.MISSING else tyro.MISSING
        for field in dataclasses.fields(command)
    }
    default = command(**defaults | {"config": starting_point(argv, stored)})
    name = "".join("-" * (i > 0 and c.isupper()) + c.lower() for i, c in enumerate(command.__name__))
    return tyro.cli(command, args=argv, default=default, prog=f"simfast {name}")


def _resumed(path: Path) -> Config:
    if path.is_dir() and not (path / "last.pt").exists() and (path / "config.yaml").exists():
        # The folder of --stage all: its two runs are inside.
        stored = Config.from_dict(_read_settings(path / "config.yaml"), str(path / "config.yaml"))
        return dataclasses.replace(stored, resume=path, out=path)
    path = checkpoint.resolve(path)
    stored = Config.from_dict(checkpoint.load(path)["config"], str(path))
    return dataclasses.replace(stored, resume=path, out=path.parent)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: must be YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: must hold a mapping of settings, got {type(loaded).__name__}")
    settings = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    for key in COMMAND_LINE_ONLY & settings.keys():
        raise ValueError(f"{path}: {key} belongs on the command line, got {settings[key]!r}")
    return settings


def _check_resumed(config: Config, stored: Config) -> None:
    if config.out != stored.out:  # where its best checkpoint and its metrics are
        raise ValueError(f"out: a resumed run stays in its folder {stored.out}, got {config.out}")
    before, now = stored.to_dict(), config.to_dict()
    # The second stage has begun from the end of the first one, wherever that was.
    free = FREE_ON_RESUME - {"steps"} if stored.stage == "all" else FREE_ON_RESUME
    for key in before:
        if key not in free and before[key] != now[key]:
            raise ValueError(
                f"{key}: a resumed run keeps its settings ({before[key]!r} in {config.resume}), got {now[key]!r}"
            )
