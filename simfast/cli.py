"""The command line of `train.py`, made from `Config`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml

from simfast import checkpoint
from simfast.config import COMMAND_LINE_ONLY, FREE_ON_RESUME, PRESETS, Config


def parse(argv: list[str]) -> Config:
    """The settings of a command line, with preset, file and resumed run resolved.

    Raises:
        SystemExit: after printing what was wrong with the command line, or its help.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--preset", "--config", "--resume", "--device"):
        early.add_argument(name)
    known, _ = early.parse_known_args(argv)
    try:
        base = _base(known)
        config = tyro.cli(Config, args=argv, default=base, prog="train.py")
        if config.resume is not None:
            _check_resumed(config, base)
            config = dataclasses.replace(config, resume=checkpoint.resolve(config.resume))
        return config
    except (ValueError, OSError) as error:
        raise SystemExit(f"train.py: {error}") from None


def _base(known: argparse.Namespace) -> Config:
    if known.resume is not None:
        path = checkpoint.resolve(Path(known.resume))
        stored = Config.from_dict(checkpoint.load(path)["config"], str(path))
        return dataclasses.replace(stored, resume=path, out=path.parent)
    settings: dict[str, Any] = {}
    if known.config is not None:
        loaded = yaml.safe_load(Path(known.config).read_text())
        if not isinstance(loaded, dict):
            raise ValueError(f"{known.config}: must hold a mapping of settings, got {type(loaded).__name__}")
        settings = {str(key).replace("-", "_"): value for key, value in loaded.items()}
        for key in COMMAND_LINE_ONLY & settings.keys():
            raise ValueError(f"{known.config}: {key} belongs on the command line, got {settings[key]!r}")
    preset = known.preset or settings.get("preset", "auto")
    if preset == "auto":
        device = known.device or settings.get("device", "auto")
        preset = "streets-gpu" if device != "cpu" and torch.cuda.is_available() else "streets"
    if preset not in PRESETS:
        raise ValueError(f"preset: must be one of auto, {', '.join(PRESETS)}, got {preset!r}")
    return Config.from_dict(settings, str(known.config), dataclasses.replace(PRESETS[preset], preset=preset))


def _check_resumed(config: Config, stored: Config) -> None:
    before, now = stored.to_dict(), config.to_dict()
    for key in before:
        if key not in FREE_ON_RESUME and before[key] != now[key]:
            raise ValueError(
                f"{key}: a resumed run keeps its settings ({before[key]!r} in {config.resume}), got {now[key]!r}"
            )
