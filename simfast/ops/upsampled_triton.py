"""The CUDA half of upsampled_cross_entropy and upsampled_softmax: what launches their Triton kernels. Contract:
simfast/ops/upsampled.py.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from simfast.ops.upsampled import padded
from simfast.ops.upsampled_kernels import upsampled_cell_kernel, upsampled_gather_kernel, upsampled_loss_kernel

VALUES = 256  # that a warp holds at once: eight a thread


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, ignore: int, maps: Tensor | None, shares: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss and count, in two launches; fills maps [B, PAD, H, W], channels-last, and shares, where they are given.
    Copies labels and weights that are not contiguous.
    """
    labels, weights = labels.contiguous(), None if weights is None else weights.contiguous()
    cells = _num_cells(logits)
    losses = logits.new_empty(cells, dtype=torch.float32)
    counts = logits.new_empty(cells, dtype=torch.int32)
    loss, count = (logits.new_empty((), dtype=torch.float32) for _ in range(2))
    _each_cell(
        logits,
        labels.shape[1:],
        labels=labels,
        weights=weights,
        maps=maps,
        losses=losses,
        counts=counts,
        shares=shares,
        ignore=ignore,
    )
    with torch.cuda.device_of(logits):
        upsampled_loss_kernel[(1,)](losses, counts, loss, count, cells, LENGTH=4096, num_warps=8)
    return loss, count


def softmax(logits: Tensor, maps: Tensor) -> None:
    """Fills maps [B, PAD, H, W], channels-last, in one launch."""
    _each_cell(logits, maps.shape[2:], maps=maps)


def softmax_backward(grad: Tensor, logits: Tensor, shares: Tensor) -> Tensor:
    """The gradient of the logits, in two launches; shares is overwritten. Copies a grad that is not channels-last."""
    _each_cell(logits, grad.shape[2:], grad=grad.permute(0, 2, 3, 1).contiguous(), shares=shares)
    return gather(shares, None, None, logits)


def gather(shares: Tensor, grad: Tensor | None, count: Tensor | None, logits: Tensor) -> Tensor:
    """The gradient of the logits, in their dtype and layout, from its shares, times grad / count; in one launch."""
    images, num_classes, h, w = logits.shape
    gradient = torch.empty_like(logits)
    classes = triton.next_power_of_2(shares.shape[-1])
    points, each = images * h * w, max(1024 // classes, 1)
    with torch.cuda.device_of(logits):
        upsampled_gather_kernel[(triton.cdiv(points, each),)](
            shares,
            grad,
            count,
            gradient,
            *gradient.stride(),
            num_classes,
            h,
            w,
            points,
            PAD=shares.shape[-1],
            CLASSES=classes,
            POINTS=each,
            num_warps=4,
        )
    return gradient


def most_pixels(few: int, many: int) -> int:
    """Of a row of `many` pixels, between two of its `few` samples: rounding, which grows with a pixel's number, moves
    them to the fuller side.
    """
    return many if few == 1 else int((many - 1) / (few - 1) + many * 2**-20) + 1


def _num_cells(logits: Tensor) -> int:
    images, _, h, w = logits.shape
    return images * max(h - 1, 1) * max(w - 1, 1)


def _each_cell(
    logits: Tensor,
    size: torch.Size,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    grad: Tensor | None = None,
    maps: Tensor | None = None,
    losses: Tensor | None = None,
    counts: Tensor | None = None,
    shares: Tensor | None = None,
    ignore: int = 0,
) -> None:
    _, num_classes, h, w = logits.shape
    pad = padded(num_classes)
    classes = triton.next_power_of_2(pad)  # of a thread's and its neighbours' values
    written = maps if grad is None else grad
    each = 8 if written is None else 16 // written.element_size()  # a thread's widest store, or load
    width = max(VALUES // classes, 1)
    axes: list[Any] = []
    for few, many in ((h, size[0]), (w, size[1])):
        # One sample alone: all pixels are the first cell's.
        axes += [(few - 1) / max(many - 1, 1), (many - 1) / (few - 1) if few > 1 else float(many)]
    with torch.cuda.device_of(logits):
        upsampled_cell_kernel[(_num_cells(logits),)](
            logits,
            *logits.stride(),
            labels,
            weights,
            grad,
            maps,
            losses,
            counts,
            shares,
            ignore,
            num_classes,
            h,
            w,
            *size,
            *axes,
            PAD=pad,
            EACH=each,
            LANES=classes // each,
            WIDTH=width,
            NARROW=most_pixels(w, size[1]) <= width,
            num_warps=1,
            enable_fp_fusion=True,
        )
