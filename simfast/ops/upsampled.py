"""upsampled_cross_entropy and upsampled_softmax: losses and softmax maps of logits that are never upsampled as a whole.

On CUDA by Triton, on the CPU in bands of rows by PyTorch; neither needs the native library.
"""

import torch
from torch import Tensor

from simfast.ops import upsampled_bands as bands
from simfast.ops.checks import came, check_map, check_tensors

DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore: int = 255,
    map_dtype: torch.dtype | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cross entropy of bilinearly upsampled logits (aligned corners), mean over the pixels that are not `ignore`.

    Computed in float32 whatever the dtypes (float64 for float64 logits). The gradient is found on the way forward and
    kept at feature size, at most four times as large as float32 logits of P classes (on the CPU once). On CUDA two
    launches, and one for the gradient; labels and weights that are not contiguous are copied.

    Args:
        logits: [B, K, h, w], float32, float16 or bfloat16 (on the CPU also float64, for gradient checks), any strides.
        labels: uint8, int16, int32 or int64 [B, H, W], in [0, K) or `ignore`. Any other label is an error on the CPU;
            on CUDA, where none can be raised without a wait, it makes loss and gradient NaN.
        map_dtype: dtype of the softmax map to return; None for none.
        weights: floating [B, H, W], a factor of each pixel's cross entropy, which the mean still divides by the number
            of pixels; None: 1.

    Returns:
        loss: float32 scalar (float64 for float64 logits), 0 where every pixel is `ignore`; differentiable in logits,
            once.
        maps: [B, P, H, W] of map_dtype, channels-last, P the next multiple of 8 from K: the softmax of the upsampled
            logits and zeros, detached; or None.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: Triton is missing on CUDA, or a second derivative was asked for.

    Source: Eq. 1, Eq. 10.
    """
    op = "upsampled_cross_entropy"
    _check_logits(op, logits)
    check_map(op, "labels", labels)
    if len(labels) != len(logits):
        raise ValueError(f"{op}: labels must be [{len(logits)}, H, W], one for each image of logits, {came(labels)}")
    if weights is not None:
        check_tensors(op, weights=weights)
        if not weights.is_floating_point() or weights.shape != labels.shape:
            raise ValueError(f"{op}: weights must be floating {list(labels.shape)}, as labels are, {came(weights)}")
    for name, x in (("labels", labels), ("weights", weights)):
        if x is not None and x.device != logits.device:
            raise ValueError(f"{op}: {name} must be on the logits' device {logits.device}, got {x.device}")
    if map_dtype is not None:
        _check_dtype(op, "map_dtype", map_dtype, logits)
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    loss, maps, _, _ = torch.ops.simfast.upsampled_cross_entropy.default(
        logits, labels, weights, ignore, map_dtype, differentiable
    )
    return loss, None if map_dtype is None else maps


def upsampled_softmax(logits: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Softmax over the classes of bilinearly upsampled logits (aligned corners), channels padded with zeros.

    Computed in float32 whatever the dtypes (float64 for float64 logits), in backward too, which computes the softmax
    again: nothing of label size is kept for it. On CUDA one launch, and two for the gradient; what comes back to a map
    is copied unless it is channels-last.

    Args:
        logits: [B, K, h, w], float32, float16 or bfloat16 (on the CPU also float64, for gradient checks), any strides.
        size: (H, W).
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        [B, P, H, W], channels-last, P the next multiple of 8 from K: the softmax, then zeros, whose gradient counts for
        nothing. Differentiable in logits, once.

    Raises:
        TypeError, ValueError, RuntimeError: as `upsampled_cross_entropy`.

    Source: what the discriminator sees (Eq. 2, Eq. 3).
    """
    op = "upsampled_softmax"
    _check_logits(op, logits)
    height, width = size
    if min(height, width) < 1 or height * width >= 2**31:
        raise ValueError(f"{op}: size must be positive, of less than 2^31 pixels, got {list(size)}")
    _check_dtype(op, "dtype", dtype, logits)
    return torch.ops.simfast.upsampled_softmax.default(logits, height, width, dtype)


def padded(num_classes: int) -> int:
    """Channels of the maps: the next multiple of 8, which a GPU's convolutions in 16 bits need to be fast."""
    return -(-num_classes // 8) * 8


def _check_logits(op: str, x: Tensor) -> None:
    check_tensors(op, logits=x)
    if x.ndim != 4 or x.numel() == 0 or not (x.dtype in DTYPES or _double_on_cpu(x.dtype, x)):
        raise ValueError(
            f"{op}: logits must be non-empty float32, float16 or bfloat16 [B, K, h, w] (float64 on the CPU), {came(x)}"
        )
    if x.shape[0] * x.shape[2] * x.shape[3] >= 2**31 - 2**10:  # what a program's number can tell apart
        raise ValueError(f"{op}: logits must have less than 2^31 - 2^10 samples, {came(x)}")


def _check_dtype(op: str, name: str, dtype: torch.dtype, logits: Tensor) -> None:
    if dtype not in DTYPES and not _double_on_cpu(dtype, logits):
        raise ValueError(f"{op}: {name} must be float32, float16 or bfloat16 (float64 on the CPU), got {dtype}")


def _double_on_cpu(dtype: torch.dtype, x: Tensor) -> bool:
    return dtype == torch.float64 and x.device.type != "cuda"


# ----------------------------------------------------------------------------------------------------------------------
# The operators. `shares` are what a backward adds up: on the CPU the gradient itself.
# ----------------------------------------------------------------------------------------------------------------------

for _schema in (
    "upsampled_cross_entropy(Tensor logits, Tensor labels, Tensor? weights, int ignore, ScalarType? map_dtype, "
    "bool differentiable) -> (Tensor loss, Tensor maps, Tensor shares, Tensor count)",
    "upsampled_cross_entropy_backward(Tensor grad, Tensor shares, Tensor count, Tensor logits) -> Tensor",
    "upsampled_softmax(Tensor logits, SymInt height, SymInt width, ScalarType dtype) -> Tensor",
    "upsampled_softmax_backward(Tensor grad, Tensor logits) -> Tensor",
):
    _name, _signature = _schema.split("(", 1)
    torch.library.define(f"simfast::{_name}", f"({_signature}", tags=torch.Tag.pt2_compliant_tag)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _empty_maps(logits: Tensor, size: tuple[int, int], dtype: torch.dtype | None) -> Tensor:
    if dtype is None:
        return logits.new_empty(0)
    shape = logits.shape[0], padded(logits.shape[1]), *size
    return torch.empty(shape, dtype=dtype, device=logits.device, memory_format=torch.channels_last)


def _shares_shape(logits: Tensor, differentiable: bool) -> tuple[int, ...]:
    if not differentiable:
        return (0,)
    images, num_classes, h, w = logits.shape
    if logits.device.type != "cuda":
        return images, num_classes, h, w
    return images * max(h - 1, 1) * max(w - 1, 1), 4, padded(num_classes)


def _triton():
    try:
        from simfast.ops import upsampled_triton
    except ImportError as failure:
        raise RuntimeError(
            f"upsampled_cross_entropy, upsampled_softmax: CUDA needs Triton, which comes with CUDA builds of torch "
            f"({failure})"
        ) from None
    return upsampled_triton


@torch.library.impl("simfast::upsampled_cross_entropy", "CPU")
def _(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore: int,
    map_dtype: torch.dtype | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_classes, labels = logits.shape[1], labels.long()  # ignore may be none of their dtype
    wrong = labels[(labels != ignore) & ((labels < 0) | (labels >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"upsampled_cross_entropy: labels must be in [0, {num_classes}) or {ignore}, got {wrong[0].item()}"
        )
    small = _wide(logits)
    maps = _empty_maps(logits, labels.shape[1:], map_dtype).zero_()
    shares = small.new_zeros(_shares_shape(logits, differentiable))
    with torch.autocast("cpu", enabled=False):
        loss, count = bands.cross_entropy(
            small,
            labels,
            ignore,
            weights,
            None if map_dtype is None else maps[:, :num_classes],
            shares if differentiable else None,
        )
    count = count.to(small.dtype)
    return loss / count, maps, shares, count


@torch.library.impl("simfast::upsampled_cross_entropy_backward", "CPU")
def _(grad: Tensor, shares: Tensor, count: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(logits).copy_(shares * (grad / count))


@torch.library.impl("simfast::upsampled_softmax", "CPU")
def _(logits: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    maps = _empty_maps(logits, (height, width), dtype).zero_()
    with torch.autocast("cpu", enabled=False):
        bands.softmax(_wide(logits), maps[:, : logits.shape[1]])
    return maps


@torch.library.impl("simfast::upsampled_softmax_backward", "CPU")
def _(grad: Tensor, logits: Tensor) -> Tensor:
    small, grad = _wide(logits), grad[:, : logits.shape[1]]
    gradient = torch.zeros_like(small)
    with torch.autocast("cpu", enabled=False):
        for rows, upsampling in bands.bands(small, grad.shape[2:]):
            band = upsampling.of(small).softmax(1)
            product = band * grad[:, :, rows]
            product -= band * product.sum(1, keepdim=True)
            gradient += upsampling.transposed_of(product)
    return torch.empty_like(logits).copy_(gradient)


@torch.library.impl("simfast::upsampled_cross_entropy", "CUDA")
def _(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore: int,
    map_dtype: torch.dtype | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maps = _empty_maps(logits, labels.shape[1:], map_dtype)
    shares = logits.new_empty(_shares_shape(logits, differentiable), dtype=torch.float32)
    loss, count = _triton().cross_entropy(
        logits, labels, weights, ignore, None if map_dtype is None else maps, shares if differentiable else None
    )
    return loss, maps, shares, count


@torch.library.impl("simfast::upsampled_cross_entropy_backward", "CUDA")
def _(grad: Tensor, shares: Tensor, count: Tensor, logits: Tensor) -> Tensor:
    return _triton().gather(shares, grad, count, logits)


@torch.library.impl("simfast::upsampled_softmax", "CUDA")
def _(logits: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    maps = _empty_maps(logits, (height, width), dtype)
    _triton().softmax(logits, maps)
    return maps


@torch.library.impl("simfast::upsampled_softmax_backward", "CUDA")
def _(grad: Tensor, logits: Tensor) -> Tensor:
    shares = logits.new_empty(_shares_shape(logits, True), dtype=torch.float32)
    return _triton().softmax_backward(grad, logits, shares)


@torch.library.register_fake("simfast::upsampled_cross_entropy")
def _(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore: int,
    map_dtype: torch.dtype | None,
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scalar = logits.new_empty((), dtype=dtype)
    shares = logits.new_empty(_shares_shape(logits, differentiable), dtype=dtype)
    return scalar, _empty_maps(logits, labels.shape[1:], map_dtype), shares, torch.empty_like(scalar)


@torch.library.register_fake("simfast::upsampled_cross_entropy_backward")
def _(grad: Tensor, shares: Tensor, count: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(logits)


@torch.library.register_fake("simfast::upsampled_softmax")
def _(logits: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    return _empty_maps(logits, (height, width), dtype)


@torch.library.register_fake("simfast::upsampled_softmax_backward")
def _(grad: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(logits)


def _save_cross_entropy(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, maps, shares, count = output
    ctx.save_for_backward(shares, count, inputs[0])
    ctx.mark_non_differentiable(maps, shares, count)
    ctx.set_materialize_grads(False)  # else zeros of label size are made


def _cross_entropy_backward(ctx, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = None
    if grad is not None:
        gradient = torch.ops.simfast.upsampled_cross_entropy_backward.default(grad, *ctx.saved_tensors)
    return gradient, None, None, None, None, None


def _save_softmax(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _softmax_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.simfast.upsampled_softmax_backward.default(grad, *ctx.saved_tensors), None, None, None


def _refusing(op: str):
    def no_second_backward(ctx, grad: Tensor) -> None:
        raise RuntimeError(f"{op}: can be differentiated once, got a request for the second derivative")

    return no_second_backward


torch.library.register_autograd(
    "simfast::upsampled_cross_entropy", _cross_entropy_backward, setup_context=_save_cross_entropy
)
torch.library.register_autograd("simfast::upsampled_softmax", _softmax_backward, setup_context=_save_softmax)
for _name in ("upsampled_cross_entropy", "upsampled_softmax"):
    torch.library.register_autograd(f"simfast::{_name}_backward", _refusing(_name))
