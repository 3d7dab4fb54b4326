"""The segmentation heads of other people's files: the AdaptSegNet family's, told apart by shapes and by values.

Of the four branches of a head AdaptSegNet, SIM and DACS train and use two, because the forward pass of their code
returns inside its loop; the other two keep the values they began with. ADVENT, BDL, FDA and CLAN use all four. CLAN has
two heads on the same features and adds their logits.

Letters: K classes, C channels.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from simfast.models.deeplab import HEAD_DILATIONS, NUM_FEATURES
from simfast.models.weights_file import few, require_floating

INITIAL_DEVIATION = 0.01
"""Standard deviation that the family's heads begin with, about a mean of 0."""
AS_INITIAL = 5.0
"""How many standard errors a branch's moments may be from those of the family's initial values."""
BY_CHANCE, BY_TRAINING = 12.0, 50.0
"""How many standard errors groups of weights may differ by chance, and from how many on by training alone."""
# Whose head it may be, by where it is: those that sum two of four branches, and those that sum all.
KNOWN = {
    ("layer6",): ("AdaptSegNet, SIM", "ADVENT"),
    ("layer5",): ("AdaptSegNet of one level, DACS", "BDL, FDA"),
    ("classifier",): ("AdaptSegNet, SIM", "ADVENT"),
    ("layer5", "layer6"): ("no published code", "CLAN"),
}


class Head(NamedTuple):
    """The head of a file that is not ours."""

    parts: tuple[str, ...]
    """Names of the modules whose logits are added: one, or CLAN's two."""
    num_branches: int
    """Branches of each."""
    num_classes: int
    live: int | None
    """How many of them, the first ones, the file's own network summed; None: the file does not tell."""
    evidence: str
    """How it is known, in words."""

    @property
    def dilations(self) -> tuple[int, ...] | None:
        """Of the branches in use; None: the file does not tell."""
        known = self.live is not None and self.num_branches == len(HEAD_DILATIONS)
        return HEAD_DILATIONS[: self.live] if known else None

    def branch(self, index: int, kind: str) -> list[str]:
        """Names of the tensors that add up to a branch's "weight" or "bias"."""
        return [f"{part}.conv2d_list.{index}.{kind}" for part in self.parts]

    def required(self, path: Path) -> str:
        """The error where it is not said how many branches are in use."""
        where = " and ".join(self.parts)
        if self.num_branches != len(HEAD_DILATIONS):
            why = f"has {self.num_branches} branches, of which the file does not tell the dilations"
            return f"head_dilations: must be given (--head-dilations) for {path}, whose head {where} {why}, got none"
        two, four = KNOWN[self.parts]
        return (
            f"head_dilations: must be given (--head-dilations) for {path}, whose head {where} has {self.num_branches} "
            f"branches, and neither their shapes nor their values tell how many its own network summed: "
            f"6 12 ({two}) or 6 12 18 24 ({four}), got none"
        )


def find_head(path: Path, tensors: Mapping[str, Tensor], arch: str) -> Head | None:
    """The head that a file has on the backbone's last features.

    Args:
        path: the file, for errors.
        tensors: its tensors by their plain names.
        arch: the backbone.

    Returns:
        None where there is no such head. An auxiliary one on other features, as AdaptSegNet's layer5, is none.

    Raises:
        ValueError: a head with tensors missing, or of shapes that do not go together.
    """
    found, num_features = {}, NUM_FEATURES[arch]
    for part in ("classifier",) if arch == "vgg16" else ("layer5", "layer6"):
        pattern = re.compile(rf"{part}\.conv2d_list\.(\d+)\.(weight|bias)")
        names = {(int(match[1]), match[2]) for name in tensors if (match := pattern.fullmatch(name))}
        if not names or (part == "layer5" and _channels(tensors, names, part) not in (None, num_features)):
            continue
        found[part] = names
    parts = tuple(found)
    if not parts:
        return None
    branches = 1 + max(index for names in found.values() for index, _ in names)
    wanted = [(f"{part}.conv2d_list.{i}", i) for part in parts for i in range(branches)]
    missing = [f"{s}.{kind}" for s, _ in wanted for kind in ("weight", "bias") if f"{s}.{kind}" not in tensors]
    if missing:
        raise ValueError(f"load_weights: {path} must have its head whole, got it without {few(missing)}")
    classes = tensors[f"{parts[0]}.conv2d_list.0.weight"].shape[:1].numel()
    for stem, _ in wanted:
        for kind, shape in (("weight", [classes, num_features, 3, 3]), ("bias", [classes])):
            if list(tensors[f"{stem}.{kind}"].shape) != shape:
                raise ValueError(
                    f"load_weights: {stem}.{kind} in {path} must be {shape}, as its head is, got "
                    f"{list(tensors[f'{stem}.{kind}'].shape)}"
                )
            require_floating(path, f"{stem}.{kind}", tensors[f"{stem}.{kind}"])
    return Head(parts, branches, classes, *_live(tensors, parts, branches))


def is_trained(weight: Tensor, bias: Tensor) -> bool | None:
    """Whether a branch was trained. True: its weights hang together as independent values do not. False: they are what
    the family's heads begin with, independent and normal(0, 0.01), by mean, deviation, kurtosis and independence.
    None: neither is beyond doubt.

    Args:
        weight: floating [K, C, 3, 3].
        bias: floating [K].
    """
    taps = weight.double().flatten(2)
    count, deviation = taps.numel(), float(taps.std(correction=0))
    if not math.isfinite(deviation) or deviation == 0:
        return None
    energy = (taps - taps.mean()).square()
    # Training moves the nine taps of a kernel alike, which read the same channel at nearby places; but not as far where
    # they more often read padding; and channels and classes as far as they are active and frequent.
    structure = max(_excess(taps, 2), _excess(energy, (0, 1)), _excess(energy, (0, 2)), _excess(taps, (1, 2)))
    if structure > BY_TRAINING:
        return True
    errors = (
        float(taps.mean()) / INITIAL_DEVIATION * math.sqrt(count),
        (deviation / INITIAL_DEVIATION - 1) * math.sqrt(2 * count),
        (float(energy.square().mean()) / deviation**4 - 3) * math.sqrt(count / 24),
    )
    bound = 1.001 / math.sqrt(9 * weight.shape[1])  # PyTorch's default, which the family leaves biases at
    as_initial = max(map(abs, errors)) < AS_INITIAL and structure < BY_CHANCE and float(bias.abs().max()) <= bound
    return False if as_initial else None


def _excess(values: Tensor, within: int | tuple[int, ...]) -> float:
    """How much more the means of groups vary than those of independent values do, in standard errors.

    Args:
        values: [K, C, 9].
        within: the dimensions that make a group.
    """
    means = values.mean(within)
    chance = float(values.var(correction=0)) * means.numel() / values.numel()
    variance = float((means - values.mean()).square().mean())
    return (variance / chance - 1) * math.sqrt(means.numel() / 2) if chance > 0 else 0.0


def summed(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The sum of tensors: branches of the same dilation on the same features are one branch of summed weights."""
    if len(names) == 1:
        return tensors[names[0]]
    return torch.stack([tensors[name].double() for name in names]).sum(0)


def _channels(tensors: Mapping[str, Tensor], names: set[tuple[int, str]], part: str) -> int | None:
    weights = [tensors[f"{part}.conv2d_list.{index}.weight"] for index, kind in sorted(names) if kind == "weight"]
    return weights[0].shape[1] if weights and weights[0].dim() == 4 else None


def _live(tensors: Mapping[str, Tensor], parts: Sequence[str], branches: int) -> tuple[int | None, str]:
    """How many branches are in use, None where that is not beyond doubt; and how it is known."""
    of_family = branches == len(HEAD_DILATIONS)
    if not of_family:
        return branches, f"its {branches} branches"
    found = [
        [is_trained(*(tensors[f"{part}.conv2d_list.{i}.{kind}"] for kind in ("weight", "bias"))) for i in range(4)]
        for part in parts
    ]
    if all(pattern == [True, True, False, False] for pattern in found):
        return 2, "2 of its 4 branches are trained, the others are as initialised, normal(0, 0.01)"
    if all(pattern == [True] * 4 for pattern in found):
        return 4, "all 4 of its branches are trained"
    if len(parts) == 2 and not any(one is False for pattern in found for one in pattern):
        return 4, "two heads on the same features, of which CLAN's network sums all branches"
    return None, ""
