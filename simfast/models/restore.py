"""A trained network for inference, from our own checkpoints and those of the AdaptSegNet family."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simfast.config import Config
from simfast.config.classes import CITYSCAPES, Classes
from simfast.models.deeplab import RESNET_STAGES, DeepLabV2, deeplab_v2
from simfast.models.formats import SAFETENSORS, write_safetensors
from simfast.models.recognise import told
from simfast.models.weights import WeightsReport, load_weights
from simfast.models.weights_file import FAMILY_HEAD, SETTINGS, WeightsFile, few, read_weights


class Restored(NamedTuple):
    """What `restore_model` found."""

    model: DeepLabV2
    """The network, in eval mode, on the device asked for."""
    convention: str
    """The input it expects, "bgr" or "rgb" (`simfast.models.normalise`)."""
    settings: dict[str, Any] | None
    """The settings of the run that our own checkpoint comes from; None for any other file."""
    weights: WeightsReport
    """How many tensors matched, and which of the file were not used."""

    @property
    def classes(self) -> Classes:
        """What its outputs tell apart."""
        return self.weights.classes

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device


def restore_model(
    path: str | Path,
    *,
    arch: str | None = None,
    head_dilations: Sequence[int] | None = None,
    convention: str | None = None,
    resnet_style: str | None = None,
    classes: Classes | None = None,
    ema: bool = False,
    device: torch.device | str = "cpu",
) -> Restored:
    """The whole network of a file, backbone and head, ready to predict.

    Our own checkpoints tell what network they hold. Of any other file the names tell the backbone, and names, shapes
    and values the head, as far as they can: see `simfast.models.told`. What is not used of a file is said.

    Args:
        path: a checkpoint.
        arch: the backbone; None: what the file tells.
        head_dilations: of the head's branches in use; None: the stored ones, or what another file tells.
        convention: "bgr" or "rgb"; None: what the file tells; the released ones are "bgr".
        resnet_style: "caffe" or "torchvision"; None: the stored one, or that of the convention.
        classes: what the head tells apart; None: what our checkpoint records, or Cityscapes' classes for other files
            (and for checkpoints that are older than class lists). Another list of the same names in the same order
            may bring colours of its own, and ids of label files.
        ema: restore the running average of the weights that the file keeps beside them.
        device: where the network goes.

    Raises:
        FileNotFoundError: path is not a file.
        ValueError: an argument contradicts what our checkpoint records; there is no head of so many classes in the
            file, such as in ImageNet weights; the file does not tell how many branches of its head are in use; or what
            `load_weights` raises.
    """
    file = read_weights(path, ema)
    if not any(FAMILY_HEAD.match(name) for name in file.tensors):
        raise ValueError(
            f"restore_model: {file.path} must have a segmentation head (layer6, layer5 or classifier.conv2d_list.N), "
            f"got {len(file.tensors)} tensors without one, such as {few(list(file.tensors))}: initial weights cannot "
            f"predict"
        )
    if file.classes is not None and classes is not None:
        require_same_names("restore_model: classes", file.path, file.classes, classes)
    classes = classes or file.classes or CITYSCAPES
    batch_norm = "train"
    if file.settings is not None:
        arch = _recorded(file, "arch", arch)
        head_dilations = _recorded(file, "head_dilations", None if head_dilations is None else list(head_dilations))
        batch_norm = _recorded(file, "batch_norm", None)
    arch = arch or architecture(file)
    asked = {"convention": convention, "head_dilations": head_dilations, "resnet_style": resnet_style}
    found = told(file, arch, len(classes), **asked)
    model = deeplab_v2(arch, len(classes), found.head_dilations, batch_norm, found.resnet_style)
    report = load_weights(model, file, **asked)
    if report.missing:
        raise ValueError(
            f"restore_model: {file.path} must have the whole network, got {report.matched} of {report.total} tensors; "
            f"missing {report.missing[0]} and {len(report.missing) - 1} more ({found.unfit or 'not in the file'})"
        )
    report = dataclasses.replace(report, classes=classes)
    return Restored(model.to(device).eval(), report.convention, file.settings, report)


def save_weights(restored: Restored, path: Path) -> None:
    """Writes a network's weights as a safetensors file, which other programs read without running code from it, and
    this one as it reads its checkpoints: what network it is, its classes and its input stand in the metadata.

    Raises:
        OSError: what writing raises; a file that was there is as it was.
        ValueError: another suffix than .safetensors; the package safetensors is not installed.
    """
    if path.suffix != SAFETENSORS:
        raise ValueError(f"save_weights: {path} must be named *{SAFETENSORS}, got {path.suffix or 'no suffix'}")
    classes = Config(classes=restored.classes).to_dict()["classes"]
    config = (restored.settings or {}) | restored.model.settings | {"classes": classes}
    about = json.dumps({"convention": restored.convention, "config": config})
    write_safetensors(path, restored.model.state_dict(), {SETTINGS: about})


def architecture(file: WeightsFile) -> str:
    """The backbone of a file, by its names.

    Raises:
        ValueError: it is none of ours.
    """
    if any(name.startswith("features.") for name in file.tensors):
        return "vgg16"
    blocks = [{name.split(".")[1] for name in file.tensors if name.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
    depths = tuple(map(len, blocks))
    basic = "layer1.0.conv1.weight" in file.tensors and "layer1.0.conv3.weight" not in file.tensors
    for arch, stages in RESNET_STAGES.items():
        if stages == depths and basic == (arch == "resnet18"):
            return arch
    there = f"a ResNet of {', '.join(map(str, depths))} blocks" if any(depths) else few(list(file.tensors))
    raise ValueError(
        f"restore_model: {file.path} must have the backbone of {', '.join(RESNET_STAGES)} or vgg16, got {there}"
    )


def require_same_names(what: str, path: Path, recorded: Classes, given: Classes) -> None:
    """
    Args:
        what: the argument or setting that `given` came by.
        path: the file that records the others.

    Raises:
        ValueError: the two lists do not name the same classes in the same order.
    """
    if given.names != recorded.names:
        raise ValueError(
            f"{what}: must name the {len(recorded)} classes of {path} in their order ({', '.join(recorded.names)}), "
            f"got the {len(given)} of {given} ({', '.join(given.names)})"
        )


def _recorded(file: WeightsFile, name: str, given: Any) -> Any:
    """A setting of our own checkpoint, which an argument may repeat but not contradict."""
    if name not in file.settings:
        raise ValueError(f"restore_model: {file.path} must record {name} in its config, got {sorted(file.settings)}")
    recorded = file.settings[name]
    recorded = list(recorded) if isinstance(recorded, tuple) else recorded
    if given not in (None, recorded):
        raise ValueError(f"restore_model: {name} must be {recorded!r}, which {file.path} records, got {given!r}")
    return recorded
