"""nearest_l1: how far the nearest remembered row of a query's class is, which one, and the gradient."""

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import came, check_tensors

DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))


def nearest_l1(queries: Tensor, classes: Tensor, bank: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance from each query to the nearest filled row of its class's bank, and which row that is.

    Where there is nothing to compare with (class -1 or any other without a bank, or a class without filled rows):
    distance +inf, row -1, zero gradient. Such a query costs nothing; the classes may come in any order.
    Gradient flows to queries only, once: sign(query - row), with sign(0) = 0.

    Sums are float32, in an order that D, dtypes, strides and alignment decide (on the CPU D alone) and all rows of a
    call share, so that equal rows are equally far. A distance of NaN counts as smaller than any number, as in an
    arg-min: NaN in a query, or in a filled row of its class, comes out as NaN.
    Backward keeps the signs, one byte a value, and neither queries nor bank: rows may be overwritten in place between
    forward and backward, and the gradient is still that of the rows that forward saw.
    The bank is read in place if its classes follow one another (`stride(0) == R * stride(1)`), else copied once; on
    CUDA what is not contiguous in D is copied too.

    Args:
        queries: [N, D], float32, float16 or bfloat16 (on the CPU also float64, for gradient checks).
        classes: integer [N], which class's rows each query is compared with; -1 = skip.
        bank: [K, R, D], of any of these dtypes.
        filled: integer [K], how many leading rows of each class are valid, 0..R.

    Returns:
        distances: float32 [N], a sum over D, not a mean (float64 for float64 queries).
        rows: int64 [N], the lowest row on ties.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit, Triton is missing on CUDA, or a second derivative
            was asked for.

    Source: min_j || . - S_j ||_1 of Eq. 6 and Eq. 8.
    """
    _check_floating("queries", queries, 2)
    _check_floating("bank", bank, 3)
    _check_integers("filled", filled, bank, "class of the bank")
    return _nearest(queries, classes, bank.detach().flatten(0, 1), None, filled, bank.shape[1])


def nearest_l1_ragged(
    queries: Tensor, classes: Tensor, bank: Tensor, starts: Tensor, filled: Tensor, max_rows: int
) -> tuple[Tensor, Tensor]:
    """nearest_l1 for classes of unequal size in one flat bank: all of them, stuff and things, in one launch.

    Args:
        queries, classes: as for `nearest_l1`.
        bank: [T, D], the rows of all classes.
        starts: integer [K], the first row of each class.
        filled: integer [K], how many rows from there on are valid; starts[k] + filled[k] <= T.
        max_rows: the most rows a class can have; the launch is sized by it.

    Returns:
        distances, rows: as for `nearest_l1`; a row counts from its class's first.

    Raises:
        As `nearest_l1`.
    """
    _check_floating("queries", queries, 2)
    _check_floating("bank", bank, 2)
    _check_integers("starts", starts, filled, "class in filled")
    _check_integers("filled", filled, starts, "class in starts")
    if max_rows < 0:
        raise ValueError(f"nearest_l1: max_rows must be at least 0, got {max_rows}")
    return _nearest(queries, classes, bank.detach(), starts.long(), filled, max_rows)


def _nearest(
    queries: Tensor, classes: Tensor, bank: Tensor, starts: Tensor | None, filled: Tensor, max_rows: int
) -> tuple[Tensor, Tensor]:
    _check_integers("classes", classes, queries, "query")
    if queries.shape[1] != bank.shape[-1]:
        raise ValueError(f"nearest_l1: bank must have the width {queries.shape[1]} of queries, got {bank.shape[-1]}")
    for name, x in (("classes", classes), ("bank", bank), ("starts", starts), ("filled", filled)):
        if x is not None and x.device != queries.device:
            raise ValueError(f"nearest_l1: {name} must be on the queries' device {queries.device}, got {x.device}")
    # On CUDA only the operator's definition comes from the library; the kernels are Triton's.
    library.require("nearest_l1", torch.device("cpu") if queries.is_cuda else queries.device)
    distances, rows, _ = torch.ops.simfast.nearest_l1.default(
        queries, classes.long(), bank, starts, filled.long(), max_rows
    )
    return distances, rows


def _check_floating(name: str, x: Tensor, ndim: int) -> None:
    check_tensors("nearest_l1", **{name: x})
    double_on_cpu = x.dtype == torch.float64 and x.device.type != "cuda"
    if x.ndim != ndim or not (x.dtype in DTYPES or double_on_cpu):
        raise ValueError(
            f"nearest_l1: {name} must be float32, float16 or bfloat16 with {ndim} dimensions "
            f"(float64 on the CPU), {came(x)}"
        )


def _check_integers(name: str, x: Tensor, like: Tensor, what: str) -> None:
    check_tensors("nearest_l1", **{name: x})
    integer = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if not integer or x.shape != like.shape[:1]:
        raise ValueError(f"nearest_l1: {name} must be integer [{like.shape[0]}], one for each {what}, {came(x)}")


def _on_cuda(*args):
    return _triton().forward(*args)


def _triton():
    try:
        from simfast.ops import nearest_triton
    except ImportError as failure:
        raise RuntimeError(
            f"nearest_l1: CUDA needs Triton, which comes with CUDA builds of torch ({failure})"
        ) from None
    return nearest_triton


def _save_for_backward(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, rows, signs = output
    ctx.save_for_backward(rows, signs)
    ctx.mark_non_differentiable(rows, signs)
    ctx.set_materialize_grads(False)  # else zeros are made as gradients of rows and signs
    ctx.dtype = inputs[0].dtype


def _backward(ctx, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    rows, signs = ctx.saved_tensors
    return torch.ops.simfast.nearest_l1_backward.default(grad, rows, signs, ctx.dtype), None, None, None, None, None


def _backward_on_cuda(grad: Tensor, rows: Tensor, signs: Tensor, dtype: torch.dtype) -> Tensor:
    return _triton().backward(grad, rows, signs, dtype)


def _no_second_backward(ctx, grad: Tensor) -> None:
    raise RuntimeError("nearest_l1: can be differentiated once, got a request for the second derivative")


if library.available():
    torch.library.impl("simfast::nearest_l1_backward", "CUDA", _backward_on_cuda)
    torch.library.impl("simfast::nearest_l1", "CUDA", _on_cuda)

    @torch.library.register_fake("simfast::nearest_l1")
    def _(
        queries: Tensor, classes: Tensor, bank: Tensor, starts: Tensor | None, filled: Tensor, max_rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        distance = torch.float64 if queries.dtype == torch.float64 else torch.float32
        num_queries, width = queries.shape
        return (
            queries.new_empty(num_queries, dtype=distance),
            queries.new_empty(num_queries, dtype=torch.int64),
            queries.new_empty((num_queries, width), dtype=torch.int8),
        )

    @torch.library.register_fake("simfast::nearest_l1_backward")
    def _(grad: Tensor, rows: Tensor, signs: Tensor, dtype: torch.dtype) -> Tensor:
        return signs.new_empty(signs.shape, dtype=dtype)

    torch.library.register_autograd("simfast::nearest_l1", _backward, setup_context=_save_for_backward)
    torch.library.register_autograd("simfast::nearest_l1_backward", _no_second_backward)
