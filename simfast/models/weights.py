"""Loading of pretrained weights, and the input convention that belongs to them.

A silent miss is the danger here: every tensor of a file is either used, or dropped for a reason that is reported,
or the load fails.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simfast.config.classes import CITYSCAPES, Classes, classes_of
from simfast.models import checkpoint
from simfast.models.checkpoint import FORMAT
from simfast.models.deeplab import VGG16_FC6_FC7, DeepLabV2

logger = logging.getLogger(__name__)

CONVENTIONS = ("bgr", "rgb")
BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)  # caffe's ImageNet mean of B, G, R in [0, 255]
RGB_MEAN = (0.485, 0.456, 0.406)  # ImageNet mean and deviation of R, G, B in [0, 1], as torchvision has them
RGB_STD = (0.229, 0.224, 0.225)

# torchvision's VGG16 keeps pool4 at index 23, so its conv5 sits one later than the family's.
TORCHVISION_VGG16_CONV5 = {"24": "23", "26": "25", "28": "27"}
FAMILY_HEAD = re.compile(r"(layer5|layer6|classifier)\.conv2d_list\.")


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did. Batch norms' `num_batches_tracked` is not counted: old files lack it.

    Attributes:
        path: the file.
        matched: how many of the model's tensors the file set.
        total: how many tensors the model has.
        dropped: (name in the file, why it was not used).
        missing: names of the model's tensors that the file does not have; they keep their initial values.
        convention: "bgr" or "rgb", how the input must be normalised for these weights.
        classes: what the head tells apart, where the file or the caller says so.
    """

    path: Path
    matched: int
    total: int
    dropped: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    convention: str
    classes: Classes | None = None


class WeightsFile(NamedTuple):
    """What `read_weights` found in a file."""

    path: Path
    tensors: dict[str, Tensor]
    """By their plain names, on the CPU."""
    recorded: str | None
    """The convention that this package's checkpoint records."""
    guessed: str | None
    """The convention that the names of any other file imply."""
    settings: dict[str, Any] | None
    """The settings of the run that this package's checkpoint comes from; None for any other file."""

    @property
    def classes(self) -> Classes | None:
        """What the head of this package's checkpoint tells apart; None for any other file."""
        return None if self.settings is None else classes_of(self.settings.get("classes", CITYSCAPES))


def load_weights(
    model: DeepLabV2,
    path: str | Path | WeightsFile,
    convention: str | None = None,
    *,
    classes: Classes | None = None,
) -> WeightsReport:
    """Copies a file's weights into model and reports what matched; on an error the model is left as it was.

    Files: this package's checkpoints; AdaptSegNet's initial weights (`Scale.` prefix) and checkpoints, the released SIM
    ones among them, with or without `module.`; torchvision's ResNet-18/50/101 and VGG16; any float type.
    A head with other classes, branches of the head that the model does not have, ImageNet classifiers and
    the family's `layer5` are dropped and reported. A head may be missing altogether; a backbone may not, except fc6
    and fc7 of VGG16 with a torchvision file.
    The released code trains and uses the first two branches of its four: load such a file with head_dilations (6, 12).

    Args:
        model: the network to fill.
        path: a file written by torch.save; a run folder (its best checkpoint); or what `read_weights` read.
        convention: "bgr" or "rgb" where the file does not tell. By itself it tells when it is this package's
            checkpoint, or has names of the AdaptSegNet family's own ("bgr"), or an ImageNet classifier ("rgb").
            Pass "bgr" for a caffe VGG16 saved under torchvision's names: it looks like a torchvision file.
        classes: what the model's head tells apart. A trained head is used only if its classes have the same names in
            the same order; that of a file that is not ours has Cityscapes'. None: if it has as many.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of torch.save or has no tensors; a backbone tensor is missing or unknown to the
            model; shapes differ; only a part of the head is there; the convention is unclear or contradicts the file's.
    """
    if convention is not None and convention not in CONVENTIONS:
        raise ValueError(f"load_weights: convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    file = path if isinstance(path, WeightsFile) else read_weights(path)
    tensors = file.tensors
    torchvision_vgg16 = model.arch == "vgg16" and "features.24.weight" in tensors
    if torchvision_vgg16:
        tensors = {_family_vgg16_name(name): tensor for name, tensor in tensors.items()}
    wanted = model.state_dict()
    used, dropped = _select(tensors, wanted, model, file.path, _other_classes(file, classes))

    counted = [name for name in wanted if not name.endswith("num_batches_tracked")]
    missing = [name for name in counted if name not in used]
    head = [name for name in counted if name.startswith(f"{model.head_name}.")]
    head_missing = [name for name in head if name not in used]
    fatal = [name for name in missing if name not in head_missing]
    counts = f"{len(counted) - len(head) - len(fatal)} of {len(counted) - len(head)} backbone tensors"
    if torchvision_vgg16:
        # Its fully connected layers are no substitute for the dilated convolutions fc6 and fc7.
        fatal = [name for name in fatal if not name.startswith(VGG16_FC6_FC7)]
    if fatal:
        raise ValueError(
            f"load_weights: {file.path} must have the whole backbone of {model.arch}, got {counts}; "
            f"{len(fatal)} missing: {_few(fatal)}"
        )
    if 0 < len(head_missing) < len(head):
        # The rest of the sum would be noise on top of trained logits.
        raise ValueError(
            f"load_weights: {file.path} must have every branch of the model's head or none, got "
            f"{len(head) - len(head_missing)} of {len(head)} tensors; build the model with the file's head_dilations"
        )
    convention = _decide_convention(file, convention)
    model.load_state_dict(used, strict=False)

    head_matched = len(head) - len(head_missing)
    line = f"weights: {counts} matched, {head_matched} of {len(head)} of the head, {convention} input, from {file.path}"
    logger.info("; ".join([line, *_notes(dropped, missing)]))
    if file.recorded is None and head_matched and len(model.head.conv2d_list) > 2:
        logger.warning(
            "weights: more than two branches of the head of %s are in use; the released code of AdaptSegNet and SIM "
            "trained the first two alone: for its files set head_dilations (6, 12)",
            file.path,
        )
    return WeightsReport(
        file.path,
        len(counted) - len(missing),
        len(counted),
        tuple(dropped),
        tuple(missing),
        convention,
        classes or file.classes,
    )


def read_weights(path: str | Path) -> WeightsFile:
    """The tensors of a file, and what it tells about them; read with weights_only=True. Of a run folder, its best
    checkpoint's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of torch.save, or has no tensors, or records an unknown convention.
    """
    path = checkpoint.resolve(Path(path), "best.pt")
    if not path.is_file():
        raise FileNotFoundError(f"load_weights: path must be a file or a run folder, got {checkpoint.missing(path)}")
    content = checkpoint.read(path)
    outer = content if isinstance(content, Mapping) else {}
    inner = outer.get("model", outer.get("state_dict"))
    inner = inner if isinstance(inner, Mapping) else outer
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"load_weights: {path} must hold a state dict, got a {type(content).__name__} without named tensors"
        )
    recorded = outer.get("convention")
    if recorded is not None and recorded not in CONVENTIONS:
        raise ValueError(
            f"load_weights: the convention that {path} records must be one of {', '.join(CONVENTIONS)}, "
            f"got {recorded!r}"
        )
    had_scale = False
    while prefix := next((p for p in ("module.", "Scale.") if all(name.startswith(p) for name in tensors)), None):
        had_scale = had_scale or prefix == "Scale."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    guessed, settings = None, None
    if outer.get("format") == FORMAT:
        settings = dict(outer.get("config") or {})
    elif had_scale or any(FAMILY_HEAD.match(name) for name in tensors):
        guessed = "bgr"
    elif any(_is_imagenet_classifier(name) for name in tensors):
        guessed = "rgb"
    return WeightsFile(path, tensors, recorded, guessed, settings)


def normalise(images: Tensor, convention: str) -> Tensor:
    """Network input float32 [B, 3, H, W] of 8-bit RGB images [B, 3, H, W], on their device.

    "bgr": channels in B, G, R order minus caffe's mean, in [0, 255]. "rgb": (x / 255 - mean) / std of ImageNet.
    The constants travel as scalar arguments: nothing is copied between host and device, so it can be captured in a
    CUDA graph.

    Raises:
        ValueError: images of another type or shape, or an unknown convention.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"normalise: images must be uint8 [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    red, green, blue = images.unbind(1)
    if convention == "bgr":
        planes = [plane.float() - mean for plane, mean in zip((blue, green, red), BGR_MEAN, strict=True)]
    elif convention == "rgb":
        scales = zip((red, green, blue), RGB_MEAN, RGB_STD, strict=True)
        planes = [(plane.float() - 255 * mean) / (255 * std) for plane, mean, std in scales]
    else:
        raise ValueError(f"normalise: convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return torch.stack(planes, dim=1)


def _decide_convention(file: WeightsFile, given: str | None) -> str:
    if given is not None and file.recorded not in (None, given):
        raise ValueError(
            f"load_weights: convention must be {file.recorded!r}, which {file.path} records, got {given!r}"
        )
    decided = given or file.recorded or file.guessed
    if decided is None:
        raise ValueError(
            f"load_weights: convention must be given for {file.path}, whose names do not tell it (bgr: BGR minus "
            f"caffe's mean; rgb: RGB with ImageNet's mean and deviation), got None"
        )
    return decided


def _is_imagenet_classifier(name: str) -> bool:
    return re.fullmatch(r"(fc|classifier\.\d+)\.(weight|bias)", name) is not None


def _family_vgg16_name(name: str) -> str:
    stem, index, *rest = name.split(".")
    return ".".join([stem, TORCHVISION_VGG16_CONV5.get(index, index), *rest]) if stem == "features" else name


def _other_classes(file: WeightsFile, classes: Classes | None) -> str | None:
    """Why the file's trained head is not the model's, as far as names tell; None if it may be."""
    if classes is None:
        return None
    theirs = file.classes or CITYSCAPES
    pairs = enumerate(zip(theirs.names, classes.names))  # noqa: B905  a head of fewer or more is told by its shape
    different = next((f"class {c} is {there} there, {here} here" for c, (there, here) in pairs if there != here), None)
    return different and f"a head of other classes ({theirs}): {different}"


def _select(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model: DeepLabV2, path: Path, other_names: str | None
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The tensors that model takes, and (name, reason) of those it does not."""
    head = f"{model.head_name}."
    # A head of the right kind is [classes, C, 3, 3]: only the number of classes may differ.
    weights = [tensor for name, tensor in tensors.items() if name.startswith(head) and tensor.dim() == 4]
    file_classes = {tensor.shape[0] for tensor in weights if tensor.shape[1:] == (model.num_features, 3, 3)}
    other_classes = file_classes - {model.num_classes}
    used: dict[str, Tensor] = {}
    dropped: list[tuple[str, str]] = []
    unknown: list[str] = []
    backbone = {name.split(".")[0] for name in wanted} - {model.head_name}
    for name, tensor in tensors.items():
        if _is_imagenet_classifier(name):
            dropped.append((name, "an ImageNet classifier"))
        elif name.startswith("layer5."):
            dropped.append((name, "a head that the model does not have"))
        elif name.startswith(head) and other_classes:
            dropped.append((name, f"a head of {max(other_classes)} classes, the model has {model.num_classes}"))
        elif name.startswith(head) and other_names:
            dropped.append((name, other_names))
        elif name.startswith(f"{head}conv2d_list.") and name not in wanted:
            dropped.append((name, f"a branch beyond the model's {len(model.head.conv2d_list)}"))
        elif name not in wanted and name.split(".")[0] in backbone:
            unknown.append(name)
        elif name not in wanted:
            dropped.append((name, "not in the model"))
        elif tensor.shape != wanted[name].shape:
            raise ValueError(
                f"load_weights: {name} in {path} must be {list(wanted[name].shape)} for {model.arch}, "
                f"got {list(tensor.shape)}"
            )
        else:
            used[name] = tensor
    if unknown:
        # For example a ResNet-101 file for a ResNet-50: all that the smaller one asks for is there, and it is wrong.
        raise ValueError(
            f"load_weights: {path} must be a file for {model.arch}, got {len(unknown)} backbone tensors that it does "
            f"not have: {_few(unknown)}"
        )
    return used, dropped


def _notes(dropped: list[tuple[str, str]], missing: list[str]) -> list[str]:
    """The report's remarks for one log line, the dropped names grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped:
        reasons.setdefault(reason, []).append(name)
    notes = [f"dropped {len(names)}, {reason}: {_few(names)}" for reason, names in reasons.items()]
    if missing:
        notes.append(f"{len(missing)} keep their initial values: {_few(missing)}")
    return notes


def _few(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
