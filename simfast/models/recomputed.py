"""Batch norm, ReLU and a convolution whose input is found again in the backward pass instead of kept."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import simfast.ops.batch_norm_act  # noqa: F401  defines the operators that are called here
from simfast.ops.conv1x1_statistics import ROWS


def norm_act_conv(
    x: Tensor,
    convolution: nn.Conv2d,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    momentum: float,
    eps: float,
    cooperative: bool,
    statistics: tuple[Tensor, int] | None = None,
    product: bool = False,
) -> tuple[Tensor, tuple[Tensor, int] | None]:
    """convolution(relu(batch_norm(x))) in training, of which x alone is kept for the backward pass.

    Args:
        x: [B, C, H, W].
        convolution: without bias; its weight is differentiable.
        others: as for `simfast.ops.batch_norm_act`, but that weight and bias of the norm are constants.

        product: whether the convolution, 1x1, is to find statistics by `simfast.ops.conv1x1_statistics`.

    Returns:
        The convolution's output, and its statistics or None.

    Raises:
        ValueError: a convolution with a bias, or a weight or bias of the norm that is trained.
    """
    if convolution.bias is not None or weight.requires_grad or bias.requires_grad:
        raise ValueError("norm_act_conv: convolution must have no bias, and weight and bias must be frozen")
    # The cast is autograd's, outside: what is kept is the weight that the convolution was computed with.
    kernel = convolution.weight.to(x.dtype)
    geometry = convolution.stride, convolution.padding, convolution.dilation, False, [0, 0], 1
    norm = running_mean, running_var, weight, bias
    more = momentum, eps, *(statistics or (None, 0)), cooperative
    out, partials = _NormActConv.apply(x, kernel, *norm, *more, geometry, product)
    return out, (partials, ROWS) if product else None


class _NormActConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        kernel: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        momentum: float,
        eps: float,
        partials: Tensor | None,
        rows: int,
        cooperative: bool,
        geometry: tuple,
        product: bool,
    ) -> tuple[Tensor, Tensor | None]:
        norm, more = (running_mean, running_var, weight, bias, None, True), (momentum, eps, partials, rows, cooperative)
        y, mean, var = torch.ops.simfast.batch_norm_act.default(x, *norm, *more)
        ctx.save_for_backward(x, kernel, mean, var, weight, bias)
        ctx.eps, ctx.cooperative, ctx.geometry = eps, cooperative, geometry
        if not product:
            return torch.ops.aten.convolution.default(y, kernel, None, *geometry), None
        out, found = torch.ops.simfast.conv1x1_statistics.default(y, kernel)
        ctx.mark_non_differentiable(found)
        ctx.set_materialize_grads(False)
        return out, found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 13
        x, kernel, *norm = ctx.saved_tensors
        y = torch.ops.simfast.batch_norm_apply.default(x, *norm, None, True, ctx.eps)
        wanted = [True, ctx.needs_input_grad[1], False]
        grad, grad_kernel, _ = torch.ops.aten.convolution_backward.default(grad, y, kernel, None, *ctx.geometry, wanted)
        # On a GPU ReLU's cut is found from x, which is read anyway.
        options = True, True, ctx.eps, False, False, ctx.cooperative
        grad_x, *_ = torch.ops.simfast.batch_norm_act_backward.default(
            grad, None, x, None if x.is_cuda else y, *norm, *options
        )
        return grad_x, grad_kernel, *(None,) * 11
