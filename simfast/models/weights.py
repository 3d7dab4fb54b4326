"""Loading of pretrained weights.

A silent miss is the danger here: every tensor of a file is either used, or dropped for a reason that is reported,
or the load fails; and what a file does not tell of its network is asked for.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from simfast.config.classes import Classes
from simfast.models.deeplab import VGG16_FC6_FC7, DeepLabV2
from simfast.models.heads import summed
from simfast.models.recognise import Told, family_names, is_torchvision_vgg16, told
from simfast.models.weights_file import WeightsFile, few, is_imagenet_classifier, read_weights, require_floating

logger = logging.getLogger(__name__)

HEADS = ("layer5.", "layer6.", "classifier.conv2d_list.")


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did. Batch norms' `num_batches_tracked` is not counted: old files lack it.

    Attributes:
        path: the file.
        matched: how many of the model's tensors the file set.
        total: how many tensors the model has.
        used: how many of the file's tensors set them; of CLAN's two heads, two set one.
        in_file: how many tensors the file has.
        dropped: (name in the file, why it was not used).
        missing: names of the model's tensors that the file does not have; they keep their initial values.
        convention: "bgr" or "rgb", how the input must be normalised for these weights.
        classes: what the head tells apart, where the file or the caller says so.
    """

    path: Path
    matched: int
    total: int
    used: int
    in_file: int
    dropped: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    convention: str
    classes: Classes | None = None


def load_weights(
    model: DeepLabV2,
    path: str | Path | WeightsFile,
    convention: str | None = None,
    *,
    classes: Classes | None = None,
    head_dilations: Sequence[int] | None = None,
    resnet_style: str | None = None,
) -> WeightsReport:
    """Copies a file's weights into model and reports what matched; on an error the model is left as it was.

    Files, of torch.save or safetensors: this package's checkpoints; AdaptSegNet's initial weights (`Scale.` prefix);
    checkpoints of AdaptSegNet, SIM, ADVENT, CLAN (whose two heads become one), BDL, FDA and DACS; torchvision's
    ResNet-18/50/101 and VGG16; any float type. What wrappers put in front of names (`module.`, `_orig_mod.`,
    `backbone.`, `model.`, `encoder_q.`) is taken off.
    A head with other classes, branches that are not in use, auxiliary heads and ImageNet classifiers are dropped and
    reported. A head may be missing altogether; a backbone may not, except fc6 and fc7 of VGG16 with a torchvision file.

    Args:
        model: the network to fill. It must be the one that the weights are for: `told` says which.
        path: a file; a run folder (its best checkpoint); or what `read_weights` read.
        convention: "bgr" or "rgb" where the file does not tell. By itself it tells when it is this package's
            checkpoint, or has names of the AdaptSegNet family's own ("bgr"), or an ImageNet classifier ("rgb").
            Pass "bgr" for a caffe VGG16 saved under torchvision's names: it looks like a torchvision file.
        classes: what the model's head tells apart. A trained head is used only if its classes have the same names in
            the same order; that of a file that is not ours has Cityscapes'. None: if it has as many.
        head_dilations: of the branches that the file's own network summed, its first ones, where the file does not
            tell; see `told`.
        resnet_style: "caffe" or "torchvision", where the network of a file that is not ours is another than its
            convention implies.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what `read_weights` and `told` raise; a backbone tensor is missing or unknown to the model; shapes
            differ; weights are no real finite floating numbers; the model's head_dilations or resnet_style are not
            those of the file.
    """
    file = path if isinstance(path, WeightsFile) else read_weights(path)
    tensors, wanted = family_names(file, model.arch), model.state_dict()
    counted = [name for name in wanted if not name.endswith("num_batches_tracked")]
    backbone = [name for name in counted if not name.startswith(f"{model.head_name}.")]
    used = _backbone(file, tensors, wanted, model, backbone)
    found = told(
        file,
        model.arch,
        model.num_classes,
        convention=convention,
        classes=classes,
        head_dilations=head_dilations,
        resnet_style=resnet_style,
    )
    _require_same_network(file, model, found)
    sources = {name: [name] for name in used}
    for i in range(len(found.head_dilations) if found.used_head else 0):
        for kind in ("weight", "bias"):
            name = f"{model.head_name}.conv2d_list.{i}.{kind}"
            sources[name] = found.head.branch(i, kind)
            used[name] = summed(tensors, sources[name])
    taken = {one for names in sources.values() for one in names}
    dropped = [(name, _why_dropped(name, found)) for name in tensors if name not in taken]
    missing = [name for name in counted if name not in used]
    model.load_state_dict(used, strict=False)

    report = WeightsReport(
        file.path,
        len(counted) - len(missing),
        len(counted),
        sum(not name.endswith("num_batches_tracked") for name in taken),
        sum(not name.endswith("num_batches_tracked") for name in tensors),
        tuple(dropped),
        tuple(missing),
        found.convention,
        classes or file.classes,
    )
    _log(file, model, found, report, sum(name in used for name in backbone), len(backbone))
    return report


def _backbone(
    file: WeightsFile,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    model: DeepLabV2,
    names: Sequence[str],
) -> dict[str, Tensor]:
    """The tensors of the backbone, all of them.

    Args:
        names: those that have to be there.
    """
    modules = {name.split(".")[0] for name in names}
    used = {name: t for name, t in tensors.items() if name in wanted and not name.startswith(f"{model.head_name}.")}
    for name, tensor in used.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"load_weights: {name} in {file.path} must be {list(wanted[name].shape)} for {model.arch}, "
                f"got {list(tensor.shape)}"
            )
        if not name.endswith("num_batches_tracked"):
            require_floating(file.path, name, tensor)
    # For example a ResNet-101 file for a ResNet-50: all that the smaller one asks for is there, and it is wrong.
    unknown = [name for name in tensors if name not in wanted and name.split(".")[0] in modules]
    unknown = [name for name in unknown if not is_imagenet_classifier(name)]
    if unknown:
        raise ValueError(
            f"load_weights: {file.path} must be a file for {model.arch}, got {len(unknown)} backbone tensors that it "
            f"does not have: {few(unknown)}"
        )
    missing = [name for name in names if name not in used]
    counts = f"{len(names) - len(missing)} of {len(names)} backbone tensors"
    if is_torchvision_vgg16(file, model.arch):
        # Its fully connected layers are no substitute for the dilated convolutions fc6 and fc7.
        missing = [name for name in missing if not name.startswith(VGG16_FC6_FC7)]
    if missing:
        others = [name for name in tensors if name not in used and not name.startswith(HEADS)]
        there = f"; it has {few(others)}" if others else ""
        raise ValueError(
            f"load_weights: {file.path} must have the whole backbone of {model.arch}, got {counts}; "
            f"{len(missing)} missing: {few(missing)}{there}"
        )
    return used


def _require_same_network(file: WeightsFile, model: DeepLabV2, found: Told) -> None:
    """
    Raises:
        ValueError: the model is another network than the file's, with tensors of the same names and shapes.
    """
    if model.arch != "vgg16" and model.resnet_style != found.resnet_style:
        raise ValueError(
            f"load_weights: the model must have resnet_style {found.resnet_style!r}, for which the {found.convention} "
            f"weights of {file.path} are, got {model.resnet_style!r}; build it so, or say resnet_style here, too"
        )
    if found.used_head and model.head_dilations != found.head_dilations:
        raise ValueError(
            f"load_weights: the model must have head_dilations {found.head_dilations}, as the head of {file.path} has "
            f"({found.head.evidence or 'as was said'}), got {model.head_dilations}"
        )


def _why_dropped(name: str, found: Told) -> str:
    if is_imagenet_classifier(name):
        return "an ImageNet classifier"
    if not name.startswith(HEADS):
        return "not in the model"
    if found.head is None or not name.startswith(tuple(f"{part}." for part in found.head.parts)):
        return "an auxiliary head that the model does not have"
    return found.unfit or f"a branch beyond the {len(found.head_dilations)} in use"


def _log(file: WeightsFile, model: DeepLabV2, found: Told, report: WeightsReport, matched: int, backbone: int) -> None:
    """One line of all that was done with a file, and a warning where it tells otherwise than was said."""
    head, branches = found.used_head, len(found.head_dilations)
    of_head = f"{2 * branches if head else 0} of {2 * len(model.head_dilations)} of the head"
    line = f"weights: {matched} of {backbone} backbone tensors matched, {of_head}, {report.convention} input"
    parts = [f"{line}, from {file.path}", f"{report.used} of the file's {report.in_file} tensors used", *file.notes]
    if file.settings is None and model.arch != "vgg16":
        parts.append(f"a ResNet in {found.resnet_style}'s style")
    if file.settings is None and head:
        names = f"head {' + '.join(head.parts)} with dilations {' '.join(map(str, found.head_dilations))}"
        parts.append(f"{names} ({head.evidence if head.live == branches else 'as was said'})")
    logger.info("; ".join([*parts, *_notes(list(report.dropped), list(report.missing))]))
    if file.settings is None and head and head.live not in (None, branches):
        logger.warning(
            "weights: head_dilations %s was said for %s, but of its head %s",
            " ".join(map(str, found.head_dilations)),
            file.path,
            head.evidence,
        )


def _notes(dropped: list[tuple[str, str]], missing: list[str]) -> list[str]:
    """The report's remarks for one log line, the dropped names grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped:
        reasons.setdefault(reason, []).append(name)
    notes = [f"dropped {len(names)}, {reason}: {few(names)}" for reason, names in reasons.items()]
    if missing:
        notes.append(f"{len(missing)} keep their initial values: {few(missing)}")
    return notes
