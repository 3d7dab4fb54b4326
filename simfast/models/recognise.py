"""What network a file's weights are for, told by its names, shapes and values."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from simfast.config.classes import CITYSCAPES, Classes
from simfast.models.deeplab import HEAD_DILATIONS
from simfast.models.heads import Head, find_head
from simfast.models.weights_file import CONVENTIONS, WeightsFile

# torchvision's VGG16 keeps pool4 at index 23, so its conv5 sits one later than the family's.
TORCHVISION_VGG16_CONV5 = {"24": "23", "26": "25", "28": "27"}


class Told(NamedTuple):
    """The network that a file's weights are for, by what the file tells and what was said in its place."""

    convention: str
    """"bgr" or "rgb"."""
    resnet_style: str
    """"caffe" or "torchvision"."""
    head_dilations: tuple[int, ...]
    """Of the branches in use; `HEAD_DILATIONS` where there is no head that can be used and nothing was said."""
    head: Head | None
    """The head; None: there is none."""
    unfit: str | None
    """Why it cannot be used; None: it can."""

    @property
    def used_head(self) -> Head | None:
        """The head, if it can be used."""
        return None if self.unfit else self.head


def told(
    file: WeightsFile,
    arch: str,
    num_classes: int,
    *,
    convention: str | None = None,
    classes: Classes | None = None,
    head_dilations: Sequence[int] | None = None,
    resnet_style: str | None = None,
) -> Told:
    """What network a file's weights are for, without building it.

    How many branches of a head of the AdaptSegNet family are in use is told by values: those that are not have the
    values that they began with, and no others have. Where that is not beyond doubt, it has to be said. (A head that was
    trained with four branches and went on with two cannot be told from one of four: say it.)
    Weights for RGB input come from torchvision's networks, those for BGR from caffe's.

    Args:
        file: of `read_weights`.
        arch: the backbone.
        num_classes: of the network to be.
        convention, classes, head_dilations, resnet_style: see `simfast.models.weights.load_weights`; what is said
            counts for files that are not ours, with a warning where the file tells otherwise. What ours record may be
            repeated.

    Raises:
        ValueError: the convention or the dilations are unclear, or contradict the file's, as the style may; a head is
            incomplete.
    """
    tensors = family_names(file, arch)
    convention = _decide_convention(file, convention)
    style = _decide_style(file, arch, resnet_style) or {"bgr": "caffe", "rgb": "torchvision"}[convention]
    said = None if head_dilations is None else tuple(head_dilations)
    head = find_head(file.path, tensors, arch)
    unfit = None if head is None else _other_classes(file, head, num_classes, classes)
    if head is None or unfit:
        return Told(convention, style, said or HEAD_DILATIONS, head, unfit)
    if file.settings is not None:
        recorded = tuple(file.settings.get("head_dilations") or HEAD_DILATIONS)
        if said not in (None, recorded):
            raise ValueError(
                f"load_weights: head_dilations must be {recorded}, which {file.path} records, got {said}: its head is "
                f"trained"
            )
        if len(recorded) != head.num_branches:
            raise ValueError(
                f"load_weights: {file.path} must have a branch for each of the head_dilations that it records "
                f"({recorded}), got {head.num_branches}"
            )
        said, head = recorded, head._replace(live=head.num_branches, evidence="as recorded")
    elif said is None and head.dilations is None:
        raise ValueError(head.required(file.path))
    elif said is not None and len(said) > head.num_branches:
        raise ValueError(
            f"load_weights: head_dilations must be at most {head.num_branches}, as many as the head of {file.path} has "
            f"branches, got {said}"
        )
    return Told(convention, style, said or head.dilations, head, None)


def _decide_convention(file: WeightsFile, given: str | None) -> str:
    if given is not None and given not in CONVENTIONS:
        raise ValueError(f"load_weights: convention must be one of {', '.join(CONVENTIONS)}, got {given!r}")
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


def _decide_style(file: WeightsFile, arch: str, given: str | None) -> str | None:
    """None where neither the file nor the caller says it."""
    if file.settings is None:
        return given
    recorded = file.settings.get("resnet_style") or "auto"
    if recorded == "auto":  # older checkpoints do not say
        return given or "caffe"
    if given not in (None, recorded) and arch != "vgg16":
        raise ValueError(
            f"load_weights: resnet_style must be {recorded!r}, which {file.path} records, got {given!r}: its weights "
            f"are trained so"
        )
    return recorded


def family_names(file: WeightsFile, arch: str) -> dict[str, Tensor]:
    """The file's tensors by the names that the family has for them."""
    if not is_torchvision_vgg16(file, arch):
        return file.tensors
    moved = {}
    for name, tensor in file.tensors.items():
        parts = name.split(".")
        if parts[0] == "features" and len(parts) > 1:
            parts[1] = TORCHVISION_VGG16_CONV5.get(parts[1], parts[1])
        moved[".".join(parts)] = tensor
    return moved


def is_torchvision_vgg16(file: WeightsFile, arch: str) -> bool:
    return arch == "vgg16" and "features.24.weight" in file.tensors


def _other_classes(file: WeightsFile, head: Head, num_classes: int, classes: Classes | None) -> str | None:
    """Why the file's trained head is not the model's, as far as its size and names tell; None if it may be."""
    if head.num_classes != num_classes:
        return f"a head of {head.num_classes} classes, the model has {num_classes}"
    if classes is None:
        return None
    theirs = file.classes or CITYSCAPES
    pairs = enumerate(zip(theirs.names, classes.names))  # noqa: B905  a head of fewer or more is told by its shape
    different = next((f"class {c} is {there} there, {here} here" for c, (there, here) in pairs if there != here), None)
    return different and f"a head of other classes ({theirs}): {different}"
