"""The adversarial losses (Eq. 2, 3); cross entropy is in `simfast.models.upsampled`."""

import torch
import torch.nn.functional as F
from torch import Tensor

ADVERSARY_LABELS = {"source": 0.0, "target": 1.0}
ADVERSARIAL_KINDS = ("bce", "ls-gan")


def adversarial_loss(judgement: Tensor, domain: str, kind: str = "bce") -> Tensor:
    """How far the discriminator's outputs are from one domain's label, mean over its positions.

    With "source" on a target image it is what the generator minimises (Eq. 2); with each image's own domain it is one
    term of the discriminator's loss (Eq. 3).

    Args:
        judgement: float, the discriminator's outputs, any shape.
        domain: "source" (label 0) or "target" (label 1).
        kind: "bce", binary cross entropy of the outputs taken as logits (Eq. 2-3), or "ls-gan", the mean of their
            squared distance to the label (Mao et al. 2017; AdaptSegNet's `--gan LS`).

    Returns:
        float32 scalar.

    Raises:
        ValueError: another domain or kind.
    """
    if domain not in ADVERSARY_LABELS:
        raise ValueError(f"adversarial_loss: domain must be one of {', '.join(ADVERSARY_LABELS)}, got {domain!r}")
    if kind not in ADVERSARIAL_KINDS:
        raise ValueError(f"adversarial_loss: kind must be one of {', '.join(ADVERSARIAL_KINDS)}, got {kind!r}")
    judgement = judgement.float()
    label = torch.full_like(judgement, ADVERSARY_LABELS[domain])
    if kind == "ls-gan":
        return F.mse_loss(judgement, label)
    return F.binary_cross_entropy_with_logits(judgement, label)
