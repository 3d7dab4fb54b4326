"""Cross entropy and softmax of upsampled logits in bands of rows, by PyTorch's operators.

Bilinear upsampling is separable and linear: two products with small matrices, and two with their transposes for the
gradient, so no atomics are needed on a GPU (torch's own backward uses them, and its deterministic replacement sorts
indices).

Letters: B images, K classes, h w feature size, H W label size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Values of a band: 16 MB of float32, a few of which stay in a GPU's second-level cache.
BAND = 1 << 22


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore: int, weights: Tensor | None, maps: Tensor | None, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sum of the cross entropy over the pixels that are not `ignore`, and how many they are, at least 1.

    Args:
        logits: [B, K, h, w], of the dtype to compute in.
        labels: integer [B, H, W].
        weights: [B, H, W]; None: 1.
        maps: [B, K, H, W], into which the softmax is written, or None.
        gradient: zeros [B, K, h, w], to which that of the sum is added, or None.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    loss = torch.zeros((), dtype=logits.dtype, device=logits.device)
    for rows, upsampling in bands(logits, labels.shape[1:]):
        band = upsampling.of(logits).log_softmax(1)
        label = labels[:, rows].long()[:, None]
        valid = label != ignore
        weight = 1 if weights is None else weights[:, rows].to(logits.dtype)[:, None].where(valid, 0)
        loss -= torch.where(valid, weight * band.gather(1, label.where(valid, 0)), 0).sum()
        band.exp_()
        if maps is not None:
            maps[:, :, rows] = band
        if gradient is not None:
            band.sub_((label == classes).to(band.dtype)).mul_(valid).mul_(weight)
            gradient += upsampling.transposed_of(band)
    return loss, (labels != ignore).sum().clamp(min=1)


def softmax(logits: Tensor, maps: Tensor) -> None:
    """Writes the softmax of the upsampled logits into maps [B, K, H, W]."""
    for rows, upsampling in bands(logits, maps.shape[2:]):
        maps[:, :, rows] = upsampling.of(logits).softmax(1)


class Upsampling:
    """The linear map from [B, K, h, w] to a band of rows of [B, K, H, W]."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = rows, columns  # [band, h], [W, w]

    def of(self, x: Tensor) -> Tensor:
        return (self.rows @ x) @ self.columns.t()

    def transposed_of(self, x: Tensor) -> Tensor:
        return self.rows.t() @ (x @ self.columns)


def bands(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Upsampling]]:
    """Slices of the rows of [B, K, H, W], each with the map to it."""
    images, classes, h, w = logits.shape
    rows, columns = (_interpolation(*sizes, logits) for sizes in ((h, size[0]), (w, size[1])))
    step = max(1, BAND // max(1, images * classes * size[1]))
    for start in range(0, size[0], step):
        band = slice(start, min(start + step, size[0]))
        yield band, Upsampling(rows[band], columns)


def _interpolation(few: int, many: int, like: Tensor) -> Tensor:
    """[many, few]: row i weighs the samples that bilinear interpolation with aligned corners mixes at i."""
    position = torch.arange(many, dtype=like.dtype, device=like.device) * ((few - 1) / max(many - 1, 1))
    distance = (position[:, None] - torch.arange(few, device=like.device)).abs()
    return (1 - distance).clamp(min=0)
