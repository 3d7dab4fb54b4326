"""Logits at feature size, seen at label size: upsampled, or their cross entropy and softmax without a float32 copy.

The latter two work through bands of rows. Bilinear upsampling is separable and linear: two products with small
matrices, and two with their transposes for the gradient, so no atomics are needed on a GPU (torch's own backward uses
them, and its deterministic replacement sorts indices).

Letters: B images, K classes, h w feature size, H W label size.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# float32 values of a band: 16 MB, a few of which stay in a GPU's second-level cache.
BAND = 1 << 22


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, h, w] bilinearly resized to size (H, W) with aligned corners, as Eq. 1 and Eq. 2 see them."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)
    # Under deterministic algorithms F.interpolate takes, on a GPU, some forty small operators in place of the one whose
    # backward pass is not deterministic, whether there will be one or not.
    return torch.ops.aten.upsample_bilinear2d(logits, size, True)


def upsampled_segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    ignore: int = 255,
    map_dtype: torch.dtype | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cross entropy of the bilinearly upsampled logits, mean over the pixels that are not `ignore` (Eq. 1, Eq. 10).

    The cross entropy of `upsample(logits, (H, W))` to float rounding. The gradient is found on the way
    forward and kept at feature size.

    Args:
        logits: floating [B, K, h, w].
        labels: integer [B, H, W], in [0, K) or `ignore`.
        map_dtype: dtype of the softmax map to return; None for none.
        weights: floating [B, H, W], a factor of each pixel's cross entropy, which the mean still divides by the number
            of pixels; None: 1.

    Returns:
        loss: float32 scalar, 0 where every pixel is `ignore`; differentiable in logits, once.
        maps: [B, K, H, W], the softmax of the upsampled logits, detached; or None.

    Raises:
        ValueError: logits or labels of another rank, or of another number of images.
    """
    if logits.dim() != 4 or labels.dim() != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"upsampled_segmentation_loss: labels must be [B, H, W] for logits [B, K, h, w], "
            f"got {list(labels.shape)} and {list(logits.shape)}"
        )
    return _CrossEntropy.apply(logits, labels, ignore, map_dtype, weights)


def upsampled_softmax(logits: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Softmax over the classes of the bilinearly upsampled logits: what the discriminator sees (Eq. 2, Eq. 3).

    Args:
        logits: floating [B, K, h, w].
        size: (H, W).
        dtype: of the result, which is also what the gradient is computed from.

    Returns:
        [B, K, H, W]; differentiable in logits, once.
    """
    return _Softmax.apply(logits, tuple(size), dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, ignore: int, map_dtype: torch.dtype | None, weights: Tensor | None
    ):
        size = labels.shape[1:]
        classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
        loss = torch.zeros((), device=logits.device)
        maps = None if map_dtype is None else logits.new_empty((*logits.shape[:2], *size), dtype=map_dtype)
        gradient = torch.zeros(logits.shape, device=logits.device) if ctx.needs_input_grad[0] else None
        with torch.autocast(logits.device.type, enabled=False):
            small = logits.float()
            for rows, upsampling in _bands(small, size):
                band = upsampling.of(small).log_softmax(1)
                label = labels[:, rows].long()[:, None]
                valid = label != ignore
                weight = 1 if weights is None else weights[:, rows].float()[:, None]
                loss -= torch.where(valid, weight * band.gather(1, label.where(valid, 0)), 0).sum()
                band.exp_()
                if maps is not None:
                    maps[:, :, rows] = band
                if gradient is not None:
                    band.sub_((label == classes).to(band.dtype)).mul_(valid).mul_(weight)
                    gradient += upsampling.transposed_of(band)
            count = (labels != ignore).sum().clamp(min=1)
            if gradient is not None:
                ctx.save_for_backward(gradient.div_(count))
        ctx.dtype = logits.dtype
        ctx.set_materialize_grads(False)
        if maps is not None:
            ctx.mark_non_differentiable(maps)
        return loss / count, maps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, _: Tensor | None):
        (gradient,) = ctx.saved_tensors
        return None if grad is None else (gradient * grad).to(ctx.dtype), None, None, None, None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        maps = logits.new_empty((*logits.shape[:2], *size), dtype=dtype)
        with torch.autocast(logits.device.type, enabled=False):
            small = logits.float()
            for rows, upsampling in _bands(small, size):
                maps[:, :, rows] = upsampling.of(small).softmax(1)
        ctx.save_for_backward(maps)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (maps,) = ctx.saved_tensors
        gradient = torch.zeros(ctx.shape, device=grad.device)
        with torch.autocast(grad.device.type, enabled=False):
            for rows, upsampling in _bands(gradient, maps.shape[2:]):
                band = maps[:, :, rows].float()
                product = band * grad[:, :, rows]
                product -= band * product.sum(1, keepdim=True)
                gradient += upsampling.transposed_of(product)
        return gradient.to(ctx.dtype), None, None


class _Upsampling:
    """The linear map from [B, K, h, w] to a band of rows of [B, K, H, W]."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = rows, columns  # [band, h], [W, w]

    def of(self, x: Tensor) -> Tensor:
        return (self.rows @ x) @ self.columns.t()

    def transposed_of(self, x: Tensor) -> Tensor:
        return self.rows.t() @ (x @ self.columns)


def _bands(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, _Upsampling]]:
    images, classes, h, w = logits.shape
    rows, columns = (_interpolation(*sizes, logits.device) for sizes in ((h, size[0]), (w, size[1])))
    step = max(1, BAND // max(1, images * classes * size[1]))
    for start in range(0, size[0], step):
        band = slice(start, min(start + step, size[0]))
        yield band, _Upsampling(rows[band], columns)


def _interpolation(few: int, many: int, device: torch.device) -> Tensor:
    """float32 [many, few]: row i weighs the samples that bilinear interpolation with aligned corners mixes at i."""
    position = torch.arange(many, dtype=torch.float32, device=device) * ((few - 1) / max(many - 1, 1))
    distance = (position[:, None] - torch.arange(few, device=device)).abs()
    return (1 - distance).clamp(min=0)
