"""Logits at feature size, seen at label size: upsampled, or their cross entropy and softmax without a float32 copy.

The latter two work through bands of rows (`simfast.ops.upsampled_bands`), or, `fused`, as operations of
`simfast.ops`.

Letters: B images, K classes, h w feature size, H W label size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from simfast import ops
from simfast.ops import upsampled_bands as bands


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
    fused: bool = False,
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
        fused: by `simfast.ops.upsampled_cross_entropy`.

    Returns:
        loss: float32 scalar, 0 where every pixel is `ignore`; differentiable in logits, once.
        maps: [B, K, H, W], the softmax of the upsampled logits, detached; or None. Where fused, channels-last and with
            channels of zeros up to a multiple of 8.

    Raises:
        ValueError: logits or labels of another rank, or of another number of images.
    """
    if logits.dim() != 4 or labels.dim() != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"upsampled_segmentation_loss: labels must be [B, H, W] for logits [B, K, h, w], "
            f"got {list(labels.shape)} and {list(logits.shape)}"
        )
    if fused:
        return ops.upsampled_cross_entropy(logits, labels, ignore, map_dtype, weights)
    return _CrossEntropy.apply(logits, labels, ignore, map_dtype, weights)


def upsampled_softmax(
    logits: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float32, fused: bool = False
) -> Tensor:
    """Softmax over the classes of the bilinearly upsampled logits: what the discriminator sees (Eq. 2, Eq. 3).

    Args:
        logits: floating [B, K, h, w].
        size: (H, W).
        dtype: of the result, which is also what the gradient is computed from, unless fused.
        fused: by `simfast.ops.upsampled_softmax`.

    Returns:
        [B, K, H, W]; differentiable in logits, once. Where fused, channels-last and with channels of zeros up to a
        multiple of 8.
    """
    if fused:
        return ops.upsampled_softmax(logits, tuple(size), dtype)
    return _Softmax.apply(logits, tuple(size), dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, ignore: int, map_dtype: torch.dtype | None, weights: Tensor | None
    ):
        size = labels.shape[1:]
        maps = None if map_dtype is None else logits.new_empty((*logits.shape[:2], *size), dtype=map_dtype)
        gradient = torch.zeros(logits.shape, device=logits.device) if ctx.needs_input_grad[0] else None
        with torch.autocast(logits.device.type, enabled=False):
            loss, count = bands.cross_entropy(logits.float(), labels, ignore, weights, maps, gradient)
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
            bands.softmax(logits.float(), maps)
        ctx.save_for_backward(maps)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return maps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (maps,) = ctx.saved_tensors
        gradient = torch.zeros(ctx.shape, device=grad.device)
        with torch.autocast(grad.device.type, enabled=False):
            for rows, upsampling in bands.bands(gradient, maps.shape[2:]):
                band = maps[:, :, rows].float()
                product = band * grad[:, :, rows]
                product -= band * product.sum(1, keepdim=True)
                gradient += upsampling.transposed_of(product)
        return gradient.to(ctx.dtype), None, None
