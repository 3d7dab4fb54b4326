"""The networks of a run, put together as its settings say."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch

from simfast import ops
from simfast.config import Config
from simfast.matching import StuffInstanceMatching
from simfast.models import checkpoint
from simfast.models.deeplab import HEAD_DILATIONS, DeepLabV2, deeplab_v2
from simfast.models.discriminator import Discriminator
from simfast.models.recognise import told
from simfast.models.weights import load_weights
from simfast.models.weights_file import read_weights
from simfast.runtime import distributed
from simfast.training.modes import resolve_precision
from simfast.training.step import Trainer

log = logging.getLogger("simfast")


def build_trainer(config: Config, device: torch.device, resumed: dict[str, Any] | None) -> Trainer:
    """The networks that the method needs with their optimisers, from initial weights or from a checkpoint.

    A run goes on in the precision that it began in, also on a device for which `auto` means another.

    Raises:
        ValueError: the checkpoint is not of these networks; names file and key.
    """
    if resumed and config.precision == "auto" and (precision := resumed.get("precision")) is not None:
        if precision != (usual := resolve_precision("auto", device)):
            log.info("precision: stays %s, in which the run began (auto is %s here)", precision, usual)
        config = dataclasses.replace(config, precision=precision)
    convention = None if config.convention == "auto" else config.convention
    style = None if config.resnet_style == "auto" else config.resnet_style
    if config.weights and not resumed:
        file = read_weights(config.weights, config.ema)
        asked = {"convention": convention, "classes": config.classes, "resnet_style": style}
        asked |= {"head_dilations": config.head_dilations}
        found = told(file, config.arch, len(config.classes), **asked)
        model = _new_model(config, found.head_dilations, found.resnet_style)
        convention = load_weights(model, file, **asked).convention
    else:
        begun = (resumed or {}).get("network", {})  # older checkpoints have none
        head_dilations = begun.get("head_dilations") or config.head_dilations or HEAD_DILATIONS
        model = _new_model(config, head_dilations, begun.get("resnet_style") or style or "caffe")
    if not config.weights and not resumed and not config.preset.startswith("streets") and config.preset != "auto":
        # Those presets have the paper's rates, which are for a pretrained backbone.
        log.warning(
            "weights: none given, the network starts from random values; the paper's rows start from ImageNet's"
        )
    discriminator = Discriminator(len(config.classes)) if config.adversarial else None
    matching = build_matching(config, model.num_features, device) if config.method == "aa+sim" else None
    trainer = Trainer(config, model, discriminator, matching, convention or "rgb", device)
    if resumed:
        _load(trainer, resumed, f"checkpoint: {config.resume}")
    return trainer


def _new_model(config: Config, head_dilations: Sequence[int], resnet_style: str) -> DeepLabV2:
    return deeplab_v2(config.arch, len(config.classes), head_dilations, config.batch_norm, resnet_style)


def _load(trainer: Trainer, resumed: dict[str, Any], where: str) -> None:
    for part, wanted in trainer.state_dict().items():
        if part not in resumed:
            raise ValueError(f"{where}: must have the key {part!r} with this method and precision, got none")
        # The module itself tells what banks of older versions lack.
        if part == "matching" and isinstance(resumed[part], dict):
            wanted = {key: wanted[key] for key in wanted if key in resumed[part]}
        checkpoint.require_like(resumed[part], wanted, f"{where}: {part}")
    try:
        trainer.load_state_dict(resumed)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:  # whatever torch says of it, in many lines
        raise ValueError(f"{where}: must fit to these settings, got {' '.join(str(error).split())}") from error


def build_matching(config: Config, num_features: int, device: torch.device) -> StuffInstanceMatching:
    """Matching with empty banks on a device, for feature maps of num_features channels."""
    precision = resolve_precision(config.precision, device)
    bank_dtype = config.bank_dtype
    if bank_dtype == "auto":
        bank_dtype = "float32" if precision == "fp32" else "bfloat16"
    matching = StuffInstanceMatching(
        num_features,
        config.classes.stuff,
        config.classes.things,
        config.stuff_rows,
        config.max_instances,
        config.gate,
        config.fill_rule,
        _ops_on(device) if config.ops == "auto" else config.ops,
        getattr(torch, bank_dtype),
    )
    matching.gather = distributed.gather if distributed.size() > 1 else None
    return matching.to(device)


def _ops_on(device: torch.device) -> str:
    """What `ops: auto` means on a device: the library may be there, and have been built without CUDA."""
    if ops.available() and not ops.available(device):
        log.warning("ops: auto uses the reference in PyTorch, which is slower: %s", ops.library.lack(device))
        return "reference"
    return "auto"
