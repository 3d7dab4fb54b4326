"""Online self-training: a mean teacher labels target images, on which source regions are pasted class by class.

Beyond the paper. The teacher is Tarvainen and Valpola's (2017), the mixing ClassMix's (Olsson et al., WACV 2021), their
use for domain adaptation DACS's (Tranheden et al., WACV 2021). Choices that differ from its authors' code: no colour
jitter and blur; 255 is no class that is pasted (there `unique` of a label map has it among the classes of which half
are drawn); a weight for each target image (there one for the batch); the teacher is in eval mode, with the network's
running statistics (there in train mode, with its batch's); the decay is 0.999 unless set (there 0.99).

Letters: B images, K classes, H W pixels of the target image.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanTeacher:
    """A running average of a network's parameters.

    Args:
        model: the network, as it begins.
        decay: what stays of the average at a step, from step 1 / (1 - decay) on; before, it is a plain mean of all.

    Attributes:
        network: the average, in eval mode; its buffers are the model's.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        # On the device, where a captured step finds it.
        self._share = torch.zeros((), device=next(model.parameters()).device)

    def set_step(self, step: int) -> None:
        """Say which step the next `follow` belongs to, counted from 0."""
        self._share.fill_(max(1 - self.decay, 1 / (step + 1)))

    @torch.no_grad()
    def follow(self) -> None:
        """Move towards the model as it is now."""
        average, new = list(self.network.parameters()), list(self.model.parameters())
        change = torch._foreach_sub(new, average)
        torch._foreach_mul_(change, self._share)
        torch._foreach_add_(average, change)
        # By dtype: a list of several is copied one by one.
        buffers: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for old, buffer in zip(self.network.buffers(), self.model.buffers(), strict=True):
            olds, news = buffers.setdefault(old.dtype, ([], []))
            olds.append(old)
            news.append(buffer)
        for olds, news in buffers.values():
            torch._foreach_copy_(olds, news)


def draw_order(seed: int, step: int, images: int, num_classes: int) -> Tensor:
    """float32 [images, num_classes], independent uniform numbers in [0, 1): the same for the same seed and step."""
    return torch.from_numpy(np.random.default_rng((seed, step)).random((images, num_classes), np.float32))


def pasted_pixels(labels: Tensor, order: Tensor, ignore: int = 255) -> Tensor:
    """Which pixels go onto the target image: those of half of the classes in each label map, rounded up (ClassMix).

    Args:
        labels: uint8 [B, H, W], train ids or `ignore`, which is never pasted.
        order: float [B, K], in [0, 1); of the classes present, those with the lowest numbers are taken.

    Returns:
        bool [B, H, W].
    """
    classes = torch.arange(order.shape[1], dtype=labels.dtype, device=labels.device)
    present = (labels[:, None] == classes[:, None, None]).flatten(2).any(2)
    order = torch.where(present, order, 2)
    rank = (order[:, None, :] < order[:, :, None]).sum(2)
    taken = present & (rank < (present.sum(1, keepdim=True) + 1) // 2)
    taken = F.pad(taken, (0, ignore + 1 - taken.shape[1]))
    return taken.gather(1, labels.flatten(1).long()).view(labels.shape)


def mix(
    source: Tensor, labels: Tensor, target: Tensor, pseudo_labels: Tensor, weight: Tensor, order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Source regions pasted on target images, with their labels and the weight of each pixel's loss.

    Args:
        source: uint8 [B, 3, h, w]; resized to the target's size, bilinearly, where it has another.
        labels: uint8 [B, h, w]; resized by nearest neighbour.
        target: uint8 [B, 3, H, W].
        pseudo_labels: integer [B, H, W], the teacher's, a class for every pixel.
        weight: float [B], of the target's pixels; the source's have 1.
        order: see `pasted_pixels`.

    Returns:
        images uint8 [B, 3, H, W], labels uint8 [B, H, W], weights float32 [B, H, W].
    """
    size = target.shape[2:]
    if source.shape[2:] != size:
        source = F.interpolate(source.float(), size, mode="bilinear", antialias=True).round().byte()
        labels = F.interpolate(labels[:, None], size, mode="nearest-exact")[:, 0]
    pasted = pasted_pixels(labels, order)
    weights = torch.where(pasted, 1.0, weight[:, None, None].float())
    return torch.where(pasted[:, None], source, target), torch.where(pasted, labels, pseudo_labels.byte()), weights


def label_confidently(maps: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """The teacher's labels, and how far an image of them is trusted (DACS).

    Args:
        maps: float [B, K, H, W], its softmax.
        confidence: what a pixel's highest probability must exceed to count.

    Returns:
        labels int64 [B, H, W]; float32 [B], the share of pixels that count.
    """
    highest, labels = maps.max(1)
    return labels, (highest > confidence).float().mean((1, 2))
