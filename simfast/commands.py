"""The command `simfast`: what is done around a training run. Every command takes the settings of train.py as well."""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

# As train.py: threads that wait by spinning get in the way of whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from tyro.conf import OmitArgPrefixes, Positional

from simfast import ablate, checkpoint
from simfast.cli import parse_command
from simfast.config import Config
from simfast.console import StopSignals, set_up_logging
from simfast.presets import RECIPES

log = logging.getLogger("simfast")
Settings = Annotated[Config, OmitArgPrefixes]


@dataclass(frozen=True)
class Prepare:
    """Write resized images and labels of source, target and held-out part to --cache, so that training decodes no PNG.

    Give the settings that training will be given. What is there already is kept.
    """

    config: Settings


@dataclass(frozen=True)
class CheckData:
    """Read every file that training with these settings would read, and list all that is missing or broken."""

    config: Settings


@dataclass(frozen=True)
class PseudoLabels:
    """Label the target's training images with a trained network where it is confident (Eq. 9, section 6.2)."""

    checkpoint: Positional[Path]
    """Run folder (its best checkpoint), checkpoint, or a released SIM or AdaptSegNet file."""
    config: Settings
    """--out is the folder of the labels."""


@dataclass(frozen=True)
class Evaluate:
    """Score a network on the held-out part at the labels' own resolution: IoU per class; means over 19, 16 and 13."""

    checkpoint: Positional[Path]
    """Run folder (its best checkpoint), checkpoint, or a released SIM or AdaptSegNet file."""
    config: Settings
    report: Path | None = None
    """JSON file for the scores."""


@dataclass(frozen=True)
class Predict:
    """Label pictures: OUT/labels (ids as PNG), OUT/colour (Cityscapes' palette) and OUT/overlay."""

    checkpoint: Positional[Path]
    """Run folder (its best checkpoint), checkpoint, or a released SIM or AdaptSegNet file."""
    inputs: Positional[tuple[Path, ...]]
    """Pictures of any size, and folders of them."""
    config: Settings
    """--out is the folder to write to, default predictions/."""
    input_size: tuple[int, int] | None = None
    """Width and height that the network sees. Default: the area of --target-size in the picture's own proportions."""
    label_ids: bool = False
    """Write Cityscapes label ids (for its server) instead of train ids."""


@dataclass(frozen=True)
class Ablate:
    """Train rows of the paper's tables with seeds, and write their table beside the paper's figures.

    Rows: source-only, aa, aa+it, aa+sim, aa+it+sim, aa+sim+ssl, aa+it+sim+ssl, target-only; each may carry settings of
    its own, as in "aa+sim,lambda_ci=0.1". Groups: modules (Tables 2 and 6), lambda_ci (Table 3), w (Table 4). "it" is
    --source-images or --transfer; fda where neither is given. Call again to continue; --out is the folder of all runs.
    """

    config: Settings
    rows: tuple[str, ...] = ("modules",)
    """Rows and groups of rows."""
    seeds: tuple[int, ...] = (0,)
    """One run a row each."""


def prepare(command: Prepare) -> int:
    from simfast.data.prepare import prepare as write

    config = command.config
    if config.cache is None:
        raise ValueError("cache: must name the folder to fill, got none")
    for part, arguments in parts_of(config).items():
        log.info("%s", part)
        write(**arguments, cache=config.cache, workers=config.workers)
    log.info("%s: ready; train with --cache %s and the same settings", config.cache, config.cache)
    return 0
