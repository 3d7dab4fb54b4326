"""sum_of_taps: dilated 3x3 convolutions from the products of their taps, with the gradient.

Nothing of it is in the native library: on CUDA it is Triton's, on the CPU torch's own operators.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simfast.ops.checks import FEATURE_DTYPES, came, check_tensors


def sum_of_taps(products: Tensor, bias: Tensor, dilations: Sequence[int]) -> Tensor:
    """The sum of zero-padded 3x3 convolutions of the given dilations, whose taps' products with each pixel are here.

    out[b, k, y, x] = bias[k] + sum over taps t of products[b, y + dy(t), x + dx(t), t K + k], nothing outside the map.
    Tap 0 is the centre of all convolutions, at offset 0; taps 1 + 8 i to 8 + 8 i are the others of the one with
    dilations[i], row by row, each of dy and dx one of -dilation, 0 and dilation. Columns from (1 + 8 D) K on are there
    to align the rows of a matrix product: they are not read, and their gradient is 0.
    Sums are float32 (float64 for float64), in the order of the taps, and rounded once. One launch on CUDA, and one for
    the gradient of products, which is written whole; that of bias is a sum over the pixels of the incoming one. What is
    not contiguous in products is copied.

    Args:
        products: [B, H, W, N], float32, float16 or bfloat16 (on the CPU also float64), N at least (1 + 8 D) K.
        bias: [K], float32 (float64 for float64 products).
        dilations: D integers from 1 on; any, also beyond the map.

    Returns:
        [B, K, H, W] of products' dtype, channels-last.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: Triton is missing on CUDA.

    Source: the head of DeepLabV2 (section 5.1), F(x) = sum over d of w_d * x.
    """
    dilations = list(dilations)
    _check(products, bias, dilations)
    return torch.ops.simfast.sum_of_taps.default(products, bias, dilations)


def num_taps(dilations: Sequence[int]) -> int:
    """How many products of K columns `sum_of_taps` adds up."""
    return 1 + 8 * len(dilations)


def offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """dy, dx of each tap."""
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return [(0, 0), *((d * y, d * x) for d in dilations for y, x in around)]


def _check(products: Tensor, bias: Tensor, dilations: list[int]) -> None:
    check_tensors("sum_of_taps", products=products, bias=bias)
    double_on_cpu = products.dtype == torch.float64 and not products.is_cuda
    if products.ndim != 4 or not (products.dtype in FEATURE_DTYPES or double_on_cpu):
        raise ValueError(
            "sum_of_taps: products must be float32, float16 or bfloat16 [B, H, W, N] (float64 on the CPU), "
            f"{came(products)}"
        )
    if bias.dtype != (torch.float64 if double_on_cpu else torch.float32) or bias.ndim != 1 or not len(bias):
        kind = "float64" if double_on_cpu else "float32"
        raise ValueError(f"sum_of_taps: bias must be {kind} [K], {came(bias)}")
    if not dilations or not all(isinstance(d, int) and 1 <= d < 2**30 for d in dilations):
        raise ValueError(f"sum_of_taps: dilations must be one or more integers from 1 to 2^30, got {dilations}")
    columns = num_taps(dilations) * len(bias)
    if products.shape[3] < columns:
        raise ValueError(
            f"sum_of_taps: products must be [B, H, W, N] with N at least {columns} for {len(bias)} classes and "
            f"{len(dilations)} dilations, {came(products)}"
        )
    if bias.device != products.device:
        raise ValueError(f"sum_of_taps: bias must be on products' device {products.device}, got {bias.device}")


# ----------------------------------------------------------------------------------------------------------------------
# The operators that it is made of
# ----------------------------------------------------------------------------------------------------------------------

_library = torch.library.Library("simfast", "FRAGMENT")
_library.define("sum_of_taps(Tensor products, Tensor bias, int[] dilations) -> Tensor")
_library.define("sum_of_taps_backward(Tensor grad, int[] dilations, SymInt columns) -> Tensor")


def _triton():
    try:
        from simfast.ops import sum_of_taps_triton
    except ImportError as failure:
        raise RuntimeError(
            f"sum_of_taps: CUDA needs Triton, which comes with CUDA builds of torch ({failure})"
        ) from None
    return sum_of_taps_triton


@torch.library.impl(_library, "sum_of_taps", "CUDA")
def _(*args):
    return _triton().forward(*args)


@torch.library.impl(_library, "sum_of_taps_backward", "CUDA")
def _(*args):
    return _triton().backward(*args)


def _overlap(size: int, offset: int) -> tuple[slice, slice]:
    """Where p and p + offset are both in a map of this size: p's, and those."""
    return slice(max(-offset, 0), max(size - max(offset, 0), 0)), slice(max(offset, 0), max(size + min(offset, 0), 0))


@torch.library.impl(_library, "sum_of_taps", "CPU")
def _(products, bias, dilations):
    height, width = products.shape[1:3]
    total = bias.expand(*products.shape[:3], len(bias)).clone(memory_format=torch.contiguous_format)
    for tap, (dy, dx) in enumerate(offsets(dilations)):
        (y, from_y), (x, from_x) = _overlap(height, dy), _overlap(width, dx)
        total[:, y, x] += products[:, from_y, from_x, tap * len(bias) : (tap + 1) * len(bias)]
    return total.to(products.dtype).permute(0, 3, 1, 2)


@torch.library.impl(_library, "sum_of_taps_backward", "CPU")
def _(grad, dilations, columns):
    batch, classes, height, width = grad.shape
    products = grad.new_zeros(batch, height, width, columns)
    grad = grad.permute(0, 2, 3, 1)
    for tap, (dy, dx) in enumerate(offsets(dilations)):
        (y, from_y), (x, from_x) = _overlap(height, dy), _overlap(width, dx)
        products[:, from_y, from_x, tap * classes : (tap + 1) * classes] = grad[:, y, x]
    return products


@torch.library.register_fake("simfast::sum_of_taps", lib=_library)
def _(products, bias, dilations):
    return products.new_empty(*products.shape[:3], bias.shape[0]).permute(0, 3, 1, 2)


@torch.library.register_fake("simfast::sum_of_taps_backward", lib=_library)
def _(grad, dilations, columns):
    batch, _, height, width = grad.shape
    return grad.new_empty(batch, height, width, columns)


def _set_up(ctx, inputs: tuple, output: Tensor) -> None:
    products, bias, ctx.dilations = inputs
    ctx.columns, ctx.dtype = products.shape[3], bias.dtype


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    products = bias = None
    if ctx.needs_input_grad[0]:
        products = torch.ops.simfast.sum_of_taps_backward.default(grad, ctx.dilations, ctx.columns)
    if ctx.needs_input_grad[1]:
        bias = grad.sum((0, 2, 3), dtype=ctx.dtype)
    return products, bias, None


def _set_up_backward(ctx, inputs: tuple, output: Tensor) -> None:
    grad, ctx.dilations, _ = inputs
    ctx.classes, ctx.dtype = grad.shape[1], torch.float64 if grad.dtype == torch.float64 else torch.float32


def _backward_of_backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
    # Its transpose, being linear.
    zeros = grad.new_zeros(ctx.classes, dtype=ctx.dtype)
    return torch.ops.simfast.sum_of_taps.default(grad, zeros, ctx.dilations), None, None


torch.library.register_autograd("simfast::sum_of_taps", _backward, setup_context=_set_up, lib=_library)
torch.library.register_autograd(
    "simfast::sum_of_taps_backward", _backward_of_backward, setup_context=_set_up_backward, lib=_library
)
