"""segment_mean: the mean feature of every segment, and its gradient."""

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import FEATURE_DTYPES, came, check_map, check_tensors


def segment_mean(features: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Mean feature of every segment of every image; 0 for an empty segment. Differentiable in features, once.

    A mean is a few float32 roundings from the exact one, however many pixels a segment has: sums are float64 on the
    CPU, compensated float32 on CUDA (where a segment of scattered single pixels, all of one value, may be a part in
    100,000 off; more with over 256 segments or under 32 channels). The shapes and the segments alone decide the order,
    on the CPU the memory layout too. Contiguous and channels-last features, and slices of their images or channels, are
    read in place; any other layout is copied once. Segments are read in place, whatever their strides and dtype.
    Backward keeps the segments and the pixels per segment, not the features.

    Args:
        features: [B, C, H, W], float32, float16 or bfloat16 (on the CPU also float64, for gradient checks).
        segments: integer [B, H, W] in [-1, num_segments); a pixel with any other value belongs to no segment.
        num_segments: S, at least 0.

    Returns:
        means: float32 [B, S, C] (float64 for float64 features).

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit; or a second derivative was asked for.

    Source: the operation A of Eq. 5 and I of Eq. 7.
    """
    check_map("segment_mean", "segments", segments)
    _check_features(features, segments)
    if num_segments < 0:
        raise ValueError(f"segment_mean: num_segments must be at least 0, got {num_segments}")
    library.require("segment_mean", features.device)
    return torch.ops.simfast.segment_mean.default(features, segments, num_segments)[0]


def _check_features(features: Tensor, segments: Tensor) -> None:
    check_tensors("segment_mean", features=features)
    double_on_cpu = features.dtype == torch.float64 and features.device.type != "cuda"
    if features.ndim != 4 or not (features.dtype in FEATURE_DTYPES or double_on_cpu):
        raise ValueError(
            "segment_mean: features must be float32, float16 or bfloat16 [B, C, H, W] "
            f"(float64 on the CPU), {came(features)}"
        )
    if features.shape[0] != segments.shape[0] or features.shape[2:] != segments.shape[1:]:
        raise ValueError(
            f"segment_mean: segments must be [B, H, W] of features {list(features.shape)}, got {list(segments.shape)}"
        )
    if features.device != segments.device:
        raise ValueError(
            f"segment_mean: segments must be on the features' device {features.device}, got {segments.device}"
        )


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _save_for_backward(ctx, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    features, segments, _ = inputs
    _, counts = output
    ctx.save_for_backward(segments, counts)
    ctx.mark_non_differentiable(counts)
    ctx.set_materialize_grads(False)  # else zeros are made as a gradient of the counts
    ctx.dtype = features.dtype
    # The gradient takes the features' layout, so that what comes before needs no copy.
    ctx.channels_last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)


def _backward(ctx, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    segments, counts = ctx.saved_tensors
    grad = torch.ops.simfast.segment_mean_backward.default(grad, counts, segments, ctx.dtype, ctx.channels_last)
    return grad, None, None


def _no_second_backward(ctx, grad: Tensor) -> None:
    raise RuntimeError("segment_mean: can be differentiated once, got a request for the second derivative")


if library.available():

    @torch.library.register_fake("simfast::segment_mean")
    def _(features: Tensor, segments: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
        images, channels = features.shape[:2]
        means = features.new_empty((images, num_segments, channels), dtype=_sum_dtype(features.dtype))
        return means, segments.new_empty((images, num_segments), dtype=torch.int32)

    @torch.library.register_fake("simfast::segment_mean_backward")
    def _(grad: Tensor, counts: Tensor, segments: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        size = (grad.shape[0], grad.shape[2], *segments.shape[1:])
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(size, dtype=dtype, device=grad.device, memory_format=memory_format)

    torch.library.register_autograd("simfast::segment_mean", _backward, setup_context=_save_for_backward)
    torch.library.register_autograd("simfast::segment_mean_backward", _no_second_backward)
