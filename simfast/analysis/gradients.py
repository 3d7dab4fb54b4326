"""How strongly each loss of Eq. 12 pulls on a network, and which of them pull the same way."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simfast.models.upsampled import upsampled_segmentation_loss
from simfast.training.step import Terms, Trainer

MATCHING = ("stuff", "instance")
TRUTH = "true target"


class Gradient(NamedTuple):
    """Of one weighted loss."""

    features: Tensor
    """float32, the shape of the feature map."""
    backbone: Tensor
    """float32 [parameters], with respect to everything that is trained but the head."""


def term_gradients(trainer: Trainer, terms: Terms, truth: Tensor | None = None) -> dict[str, Gradient]:
    """The gradient of lambda * loss for each loss of a domain.

    Args:
        trainer: of the losses; its networks keep the gradients they have.
        terms: of `trainer.source_terms` or `trainer.target_terms`, with their graph, which stays.
        truth: uint8 [B, H, W], true labels of the target images.

    Returns:
        By the names of the losses; "matching", the sum of stuff and instance; "true target", of the segmentation loss
        on truth, which diagnosis alone knows.
    """
    backbone = trainer.model.parameter_groups(lr=1.0)[0]["params"]
    scale = 1.0 if trainer.scaler is None else trainer.scaler.get_scale()  # in fp16 small gradients would be zero
    weighted = {name: trainer.weights[name] * loss for name, loss in terms.losses.items()}
    if truth is not None:
        weighted[TRUTH] = trainer.weights["seg"] * upsampled_segmentation_loss(terms.logits, truth)[0]
    found = {}
    for name, loss in weighted.items():
        inputs = [terms.features, *backbone]
        parts = torch.autograd.grad(scale * loss, inputs, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(x) if part is None else part for x, part in zip(inputs, parts, strict=True)]
        features, *rest = (part.float() / scale for part in parts)
        found[name] = Gradient(features, torch.cat([part.flatten() for part in rest]))
    if all(name in found for name in MATCHING):
        stuff, instance = (found[name] for name in MATCHING)
        found["matching"] = Gradient(stuff.features + instance.features, stuff.backbone + instance.backbone)
    return found


def cosine(first: Tensor, second: Tensor) -> float | None:
    """Of the angle between two vectors; None where one is zero."""
    norms = first.norm() * second.norm()
    return float(torch.dot(first, second) / norms) if norms > 0 else None


class GradientTally:
    """Means over batches of what `term_gradients` finds.

    Args:
        weights: lambda by the name of the loss.
    """

    def __init__(self, weights: Mapping[str, float]):
        self._weights = {**weights, "matching": weights["stuff"], TRUTH: weights["seg"]}
        self._found: dict[str, list[dict[str, float | None]]] = {}

    def add(self, gradients: dict[str, Gradient]) -> None:
        """Those of one batch, of both domains."""
        for name, gradient in gradients.items():
            row = {"features": float(gradient.features.norm()), "backbone": float(gradient.backbone.norm())}
            for other in ("adv", TRUTH):
                if name != other and other in gradients:
                    row[f"cosine {other}"] = cosine(gradient.backbone, gradients[other].backbone)
            self._found.setdefault(name, []).append(row)

    def rows(self, losses: Mapping[str, float], trained: Collection[str]) -> dict[str, dict[str, Any]]:
        """By name of the loss: its weight, mean, whether the run trains on it; the mean norms of the gradient of weight
        * loss with respect to "features" and "backbone"; at the backbone, the cosine with the gradients of "adv" and of
        "true target" (positive: a step down the one goes down the other): its mean and in how many batches it is
        positive. None where undefined.

        Args:
            losses: their unweighted means.
            trained: those that the run trains on.
        """
        found = {}
        losses = dict(losses)
        if all(name in losses for name in MATCHING):
            losses["matching"] = sum(losses[name] for name in MATCHING)
        for name in dict.fromkeys([*losses, *self._found]):
            row: dict[str, Any] = {"weight": self._weights[name], "loss": losses.get(name), "trained": name in trained}
            for key in ("features", "backbone", "cosine adv", f"cosine {TRUTH}"):
                values = [one[key] for one in self._found.get(name, []) if one.get(key) is not None]
                row[key] = mean = sum(values) / len(values) if values else None
                if values and key.startswith("cosine"):
                    row[key] = {"mean": mean, "positive": sum(x > 0 for x in values), "batches": len(values)}
            found[name] = row
        return found
