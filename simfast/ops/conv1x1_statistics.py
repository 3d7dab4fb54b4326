"""conv1x1_statistics: a 1x1 convolution, and what batch norm's statistics of its output are merged from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simfast.ops.checks import FEATURE_DTYPES, came, check_tensors

ROWS = 128
"""Pixels of a chunk."""


def conv1x1_statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, int]:
    """A 1x1 convolution of stride 1 without bias, and mean and M2 of each chunk of its output's pixels.

    The chunks are of `rows` pixels in the order (B, H, W), the last one of what is left: chunk p has the pixels from
    p * rows to min((p + 1) * rows, M) - 1 of M = B * H * W. M2 is the sum of squared distances to the chunk's mean.
    Merging chunks (Chan et al. 1979) gives mean and variance of all pixels of a channel without reading the output.
    Statistics are of the output as rounded to its dtype. All sums are float32, in an order that shapes, dtype and
    device alone decide; float32 products on CUDA are what cuDNN's convolutions are, TF32 unless
    torch.backends.cudnn.allow_tf32 is switched off.

    Gradient flows from `out` alone, to x and weight, by torch's own convolution_backward. partials are marked not
    differentiable: what normalises `out` with them has in its gradient for `out` the share of the statistics too.

    Args:
        x: [B, K, H, W], float32, float16 or bfloat16 (on the CPU also float64, for gradient checks). Read in place if
            channels-last, else copied once.
        weight: [N, K, 1, 1], of x's dtype, on its device.

    Returns:
        out: [B, N, H, W], channels-last, of x's dtype.
        partials: float32 [2, P, N] (float64 for float64 x), P = ceil(M / rows): means in [0], M2 in [1].
        rows: pixels of a chunk.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: Triton is missing on CUDA.
    """
    check_tensors("conv1x1_statistics", x=x, weight=weight)
    double_on_cpu = x.dtype == torch.float64 and x.device.type != "cuda"
    if x.ndim != 4 or not (x.dtype in FEATURE_DTYPES or double_on_cpu) or x.numel() == 0:
        raise ValueError(
            f"conv1x1_statistics: x must be a non-empty float32, float16 or bfloat16 [B, K, H, W] "
            f"(float64 on the CPU), {came(x)}"
        )
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 1, 1) or len(weight) == 0 or weight.dtype != x.dtype:
        kind = str(x.dtype).removeprefix("torch.")
        rule = f"must be {kind} [N, {x.shape[1]}, 1, 1] for x {list(x.shape)}, with N at least 1"
        raise ValueError(f"conv1x1_statistics: weight {rule}, {came(weight)}")
    if weight.device != x.device:
        raise ValueError(f"conv1x1_statistics: weight must be on x's device {x.device}, got {weight.device}")
    return *torch.ops.simfast.conv1x1_statistics.default(x, weight), ROWS


torch.library.define("simfast::conv1x1_statistics", "(Tensor x, Tensor weight) -> (Tensor, Tensor)")


@torch.library.impl("simfast::conv1x1_statistics", "CPU")
def _on_cpu(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        out = F.conv2d(x, weight).contiguous(memory_format=torch.channels_last)
    # Where several layouts mean the same, as with one channel, that of the kernel.
    out = out.permute(0, 2, 3, 1).contiguous()
    pixels = out.flatten(0, 2).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    whole = len(pixels) // ROWS * ROWS
    chunks = [pixels[:whole].unflatten(0, (-1, ROWS)), pixels[None, whole:]]
    found = [torch.var_mean(c, 1, correction=0) for c in chunks if c.numel()]
    sizes = [c.shape[1] for c in chunks if c.numel()]
    means = torch.cat([mean for _, mean in found])
    distances = torch.cat([variance * size for (variance, _), size in zip(found, sizes, strict=True)])
    return out.permute(0, 3, 1, 2), torch.stack([means, distances])


@torch.library.impl("simfast::conv1x1_statistics", "CUDA")
def _on_cuda(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    try:
        from simfast.ops import conv1x1_statistics_triton
    except ImportError as failure:
        raise RuntimeError(
            f"conv1x1_statistics: CUDA needs Triton, which comes with CUDA builds of torch ({failure})"
        ) from None
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
    return conv1x1_statistics_triton.forward(x, weight, ROWS, tf32)


@torch.library.register_fake("simfast::conv1x1_statistics")
def _(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    images, _, height, width = x.shape
    channels, chunks = weight.shape[0], (images * height * width + ROWS - 1) // ROWS
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
    return out, x.new_empty((2, chunks, channels), dtype=statistics)


def _save_for_backward(ctx, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros are made as a gradient of partials


def _backward(ctx, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if grad is None:
        return None, None
    x, weight = ctx.saved_tensors
    plain = None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1  # neither bias nor padding, dilation or groups
    wanted = [*ctx.needs_input_grad, False]
    return torch.ops.aten.convolution_backward.default(grad, x, weight, *plain, wanted)[:2]


torch.library.register_autograd("simfast::conv1x1_statistics", _backward, setup_context=_save_for_backward)
