"""A trained network for inference, from our own checkpoints and the released ones of SIM and AdaptSegNet."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simfast.config.classes import CITYSCAPES, Classes
from simfast.models.deeplab import DeepLabV2, deeplab_v2
from simfast.models.weights import WeightsFile, WeightsReport, load_weights, read_weights

RELEASED_HEAD_DILATIONS = (6, 12)
HEADS = ("layer6.conv2d_list.", "classifier.conv2d_list.")


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
    classes: Classes | None = None,
    device: torch.device | str = "cpu",
) -> Restored:
    """The whole network of a file, backbone and head, ready to predict.

    Our own checkpoints tell what network they hold. Of any other file the names tell VGG16 (`features.N`) from
    ResNet-101, and the head is the released code's: of its four branches the forward pass used the first two, because
    it returns inside its loop. The other two and the auxiliary head `layer5` are dropped with a message.

    Args:
        path: a checkpoint.
        arch: the backbone; None: what the file tells.
        head_dilations: of the head's branches in use; None: the stored ones, or (6, 12) for other files.
        convention: "bgr" or "rgb"; None: what the file tells; the released ones are "bgr".
        classes: what the head tells apart; None: what our checkpoint records, or Cityscapes' classes for other files
            (and for checkpoints that are older than class lists). Another list of the same names in the same order
            may bring colours of its own, and ids of label files.
        device: where the network goes.

    Raises:
        FileNotFoundError: path is not a file.
        ValueError: an argument contradicts what our checkpoint records; there is no head of so many classes in the
            file, such as in ImageNet weights; or what `load_weights` raises.
    """
    file = read_weights(path)
    if not any(name.startswith(HEADS) for name in file.tensors):
        raise ValueError(
            f"restore_model: {file.path} must have a segmentation head ({' or '.join(HEADS)}N), got "
            f"{len(file.tensors)} tensors without one: initial weights cannot predict"
        )
    if file.classes is not None and classes is not None:
        require_same_names("restore_model: classes", file.path, file.classes, classes)
    classes = classes or file.classes or CITYSCAPES
    if file.settings is None:
        named_as_vgg16 = any(name.startswith("features.") for name in file.tensors)
        arch = arch or ("vgg16" if named_as_vgg16 else "resnet101")
        model = deeplab_v2(arch, len(classes), head_dilations or RELEASED_HEAD_DILATIONS)
    else:
        arch = _recorded(file, "arch", arch)
        head_dilations = _recorded(file, "head_dilations", None if head_dilations is None else list(head_dilations))
        model = deeplab_v2(arch, len(classes), head_dilations, _recorded(file, "batch_norm", None))
    report = load_weights(model, file, convention)
    if report.missing:
        why = {f"{name}: {reason}" for name, reason in report.dropped if name.startswith(model.head_name)}
        raise ValueError(
            f"restore_model: {file.path} must have the whole network, got {report.matched} of {report.total} tensors; "
            f"missing {report.missing[0]} and {len(report.missing) - 1} more ({min(why, default='not in the file')})"
        )
    report = dataclasses.replace(report, classes=classes)
    return Restored(model.to(device).eval(), report.convention, file.settings, report)


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
