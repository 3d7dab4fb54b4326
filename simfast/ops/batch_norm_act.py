"""batch_norm_act: batch norm, a residual and ReLU as one operation, with its gradient.

Nothing of it is in the native library: on CUDA it is Triton's, on the CPU torch's own operators.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from simfast.ops.checks import FEATURE_DTYPES, came, check_tensors


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    act: Literal["relu", "none"] = "relu",
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    statistics: tuple[Tensor, int] | None = None,
    twice: bool = False,
    cooperative: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """act(batch_norm(x) + residual), as `torch.nn.functional.batch_norm` normalises, rounded once.

    In training by the mean and the biased variance of x over its images and pixels, which move the running statistics
    in place (the variance unbiased), on the device; else by the running statistics.
    On CUDA maps are channels-last: x, residual and the incoming gradient are copied to that layout where they have
    another, and the output has it. Statistics and sums are float32, in an order that the shapes alone decide. Forward
    passes over x twice (once in eval mode), and writes nothing but the output. Backward passes twice over x and the
    gradient. It keeps x, and where there is a residual the output, whose signs then tell where ReLU cut. In eval mode
    with frozen weight and bias it passes once, and keeps the output alone.
    On the CPU, torch's operators do the same one by one: values are rounded in between, as with modules.
    torch.autograd's derivative of the gradient is an error.

    Args:
        x: [B, C, H, W], float32, float16 or bfloat16 (on the CPU also float64, for gradient checks).
        running_mean, running_var: float32 [C]; both None: in training, without a trace. float64 for float64 x.
        weight, bias: as the running statistics; differentiable too.
        residual: of x's shape and dtype; differentiable.
        act: "relu" or "none".
        training: whether to normalise by x's own statistics.
        momentum: what of x's statistics goes into the running ones.
        eps: added to the variance.
        statistics: in training, those of x where its product gave them already (`conv1x1_statistics`): float32
            [2, P, C], the means of stretches of pixels and the sums of squared distances to them; and how many pixels a
            stretch has. Without gradient: what x's gradient owes to them is computed here.
        twice: return the output as two tensors of one storage, for two consumers: their gradients are then added here,
            without a pass of their own.
        cooperative: on CUDA, both passes of training in one launch each way, whose programs wait for each other: the
            same bits. Where a GPU has too few multiprocessors to hold them all, two launches all the same. Calls on
            one stream at a time: a graph of them is not to be replayed beside another one.

    Returns:
        [B, C, H, W] of x's dtype, or two.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: Triton is missing on CUDA.

    Source: Ioffe and Szegedy (2015), Algorithm 1; He et al. (2016), the blocks of DeepLabV2's backbone (section 5.1).
    """
    _check(x, running_mean, running_var, weight, bias, residual, act, training, statistics)
    partials, rows = statistics or (None, 0)
    if x.is_cuda:
        _triton()
    options = act == "relu", training, momentum, eps, partials, rows, cooperative
    y, again = _BatchNormAct.apply(x, residual, weight, bias, running_mean, running_var, *options)
    return (y, again) if twice else y


def _check(x, running_mean, running_var, weight, bias, residual, act, training, statistics) -> None:
    check_tensors("batch_norm_act", x=x, weight=weight, bias=bias)
    double_on_cpu = x.dtype == torch.float64 and not x.is_cuda
    if x.ndim != 4 or not (x.dtype in FEATURE_DTYPES or double_on_cpu):
        raise ValueError(
            f"batch_norm_act: x must be float32, float16 or bfloat16 [B, C, H, W] (float64 on the CPU), {came(x)}"
        )
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        raise ValueError(
            "batch_norm_act: running_mean and running_var must be given together, and always in eval mode, "
            f"got {'no' if running_mean is None else 'a'} mean and {'no' if running_var is None else 'a'} variance"
        )
    dtype, channels = (torch.float64 if double_on_cpu else torch.float32), x.shape[1]
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        if vector is None:
            continue
        check_tensors("batch_norm_act", **{name: vector})
        if vector.dtype != dtype or vector.shape != (channels,) or not vector.is_contiguous():
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(f"batch_norm_act: {name} must be a contiguous {kind} [{channels}], {came(vector)}")
    if residual is not None:
        check_tensors("batch_norm_act", residual=residual)
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(f"batch_norm_act: residual must be as x, {came(x)[4:]}, {came(residual)}")
    if act not in ("relu", "none"):
        raise ValueError(f"batch_norm_act: act must be relu or none, got {act!r}")
    if training and x.numel() <= channels:
        raise ValueError(f"batch_norm_act: x must have more than one value a channel in training, {came(x)}")
    if statistics is not None:
        if not (isinstance(statistics, tuple) and len(statistics) == 2 and isinstance(statistics[1], int)):
            raise TypeError(f"batch_norm_act: statistics must be a tensor and a number, got {statistics!r}")
        partials, rows = statistics
        check_tensors("batch_norm_act", statistics=partials)
        stretches = -(-(x.numel() // max(channels, 1)) // rows) if rows > 0 else 0
        fits = partials.dtype == dtype and partials.shape == (2, stretches, channels)
        if not (training and rows > 0 and fits and partials.is_contiguous()):
            raise ValueError(
                f"batch_norm_act: statistics must be float32 [2, P, {channels}] of P stretches that make up x, in "
                f"training, {came(partials)} of stretches of {rows} pixels"
            )
    others = {"residual": residual, "statistics": statistics and statistics[0]} | vectors
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"batch_norm_act: {name} must be on x's device {x.device}, got {other.device}")


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        relu: bool,
        training: bool,
        momentum: float,
        eps: float,
        partials: Tensor | None,
        rows: int,
        cooperative: bool,
    ) -> tuple[Tensor, Tensor]:
        norm = weight, bias, residual, relu
        if training:
            running, more = (running_mean, running_var), (momentum, eps, partials, rows, cooperative)
            y, mean, var = torch.ops.simfast.batch_norm_act.default(x, *running, *norm, *more)
        else:
            mean, var = running_mean, running_var
            y = torch.ops.simfast.batch_norm_apply.default(x, mean, var, *norm, eps)
        constant = not training and not any(ctx.needs_input_grad[2:4])
        # On the CPU every output serves: whoever reads it next keeps it anyway.
        kept = y if relu and (residual is not None or constant or not x.is_cuda) else None
        ctx.save_for_backward(None if constant else x, kept, mean, var, weight, bias)
        ctx.relu, ctx.training, ctx.eps, ctx.has_residual = relu, training, eps, residual is not None
        ctx.cooperative = cooperative
        ctx.set_materialize_grads(False)
        return y, y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, again: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            grad, again = again, None
        if grad is None:
            return (None,) * 13
        x, y, *norm = ctx.saved_tensors
        x = grad if x is None else x  # of which the shape alone is asked
        needs_residual = ctx.has_residual and ctx.needs_input_grad[1]
        found = torch.ops.simfast.batch_norm_act_backward.default(
            grad,
            again,
            *(x, y, *norm),
            ctx.relu,
            ctx.training,
            ctx.eps,
            needs_residual,
            any(ctx.needs_input_grad[2:4]),
            ctx.cooperative,
        )
        wanted = zip(found, ctx.needs_input_grad[:4], strict=True)
        return (*(gradient if needed else None for gradient, needed in wanted), *(None,) * 9)


# ----------------------------------------------------------------------------------------------------------------------
# The operators that it is made of
# ----------------------------------------------------------------------------------------------------------------------

_library = torch.library.Library("simfast", "FRAGMENT")
_library.define(
    "batch_norm_act(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor weight, Tensor bias, "
    "Tensor? residual, bool relu, float momentum, float eps, Tensor? partials, int rows, bool cooperative) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(
    "batch_norm_apply(Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, Tensor? residual, bool relu, "
    "float eps) -> Tensor"
)
_library.define(
    "batch_norm_act_backward(Tensor grad, Tensor? again, Tensor x, Tensor? y, Tensor mean, Tensor var, Tensor weight, "
    "Tensor bias, bool relu, bool training, float eps, bool needs_residual, bool needs_affine, "
    "bool cooperative) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def _triton():
    try:
        from simfast.ops import batch_norm_act_triton
    except ImportError as failure:
        raise RuntimeError(
            f"batch_norm_act: CUDA needs Triton, which comes with CUDA builds of torch ({failure})"
        ) from None
    return batch_norm_act_triton


@torch.library.impl(_library, "batch_norm_act", "CUDA")
def _(*args):
    return _triton().forward(*args)


@torch.library.impl(_library, "batch_norm_apply", "CUDA")
def _(*args):
    return _triton().apply(*args)


@torch.library.impl(_library, "batch_norm_act_backward", "CUDA")
def _(*args):
    return _triton().backward(*args)


def merged(partials: Tensor, rows: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of a map from those of its stretches (Chan, Golub and LeVeque 1979)."""
    means, within = partials.double()
    counts = (pixels - torch.arange(len(means), device=means.device) * rows).clamp(max=rows).double()[:, None]
    mean = (counts * means).sum(0) / pixels
    return mean, (within + counts * (means - mean).square()).sum(0) / pixels


@torch.library.impl(_library, "batch_norm_act", "CPU")
def _(x, running_mean, running_var, weight, bias, residual, relu, momentum, eps, partials, rows, cooperative):
    if partials is None:
        y, mean, deviation = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        return _finished(x, y, residual, relu), mean, deviation.pow(-2) - eps
    pixels = x.numel() // x.shape[1]
    mean, var = (part.to(weight.dtype) for part in merged(partials, rows, pixels))
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (pixels / (pixels - 1)), momentum)
    return _finished(x, F.batch_norm(x, mean, var, weight, bias, eps=eps), residual, relu), mean, var


@torch.library.impl(_library, "batch_norm_apply", "CPU")
def _(x, mean, var, weight, bias, residual, relu, eps):
    return _finished(x, F.batch_norm(x, mean, var, weight, bias, eps=eps), residual, relu)


def _finished(x: Tensor, y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = y.contiguous(memory_format=_layout(x))
    if residual is not None:
        y += residual
    return y.relu_() if relu else y


@torch.library.impl(_library, "batch_norm_act_backward", "CPU")
def _(grad, again, x, y, mean, var, weight, bias, relu, training, eps, needs_residual, needs_affine, cooperative):
    layout = _layout(x)
    if x.numel() == 0:
        affine = [torch.zeros_like(p) if needs_affine else x.new_empty(0) for p in (weight, bias)]
        return _like(x), _like(x) if needs_residual else x.new_empty(0), *affine
    if again is not None:
        grad = grad + again
    if relu:
        if y is None:
            y = F.batch_norm(x, mean, var, weight, bias, eps=eps)
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    own = None, None, mean, torch.rsqrt(var + eps)
    norm = own if training else (mean, var, None, None)
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, *norm, training, eps, [True, needs_affine, needs_affine]
    )
    # No result of a custom operator may be one of its inputs, or another result.
    residual = x.new_empty(0)
    if needs_residual:
        residual = grad.contiguous(memory_format=layout) if relu else grad.clone(memory_format=layout)
    affine = (grad_weight, grad_bias) if needs_affine else (x.new_empty(0), x.new_empty(0))
    return grad_x.contiguous(memory_format=layout), residual, *affine


@torch.library.register_fake("simfast::batch_norm_act", lib=_library)
def _(x, running_mean, running_var, weight, bias, residual, relu, momentum, eps, partials, rows, cooperative):
    return _like(x), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.register_fake("simfast::batch_norm_apply", lib=_library)
def _(x, mean, var, weight, bias, residual, relu, eps):
    return _like(x)


@torch.library.register_fake("simfast::batch_norm_act_backward", lib=_library)
def _(grad, again, x, y, mean, var, weight, bias, relu, training, eps, needs_residual, needs_affine, cooperative):
    affine = [torch.empty_like(p) if needs_affine else x.new_empty(0) for p in (weight, bias)]
    return _like(x), _like(x) if needs_residual else x.new_empty(0), *affine


def _layout(x: Tensor) -> torch.memory_format:
    """Of all maps that come of x: on the CPU those that torch's own batch norm gives."""
    planes = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if planes and not x.is_cuda else torch.channels_last


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x))
