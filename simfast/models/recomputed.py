"""Batch norm, ReLU and a convolution whose input is found again in the backward pass instead of kept."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import simfast.ops.batch_norm_act  # noqa: F401  defines the operators that are called here


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
) -> Tensor:
    """convolution(relu(batch_norm(x))) in training, of which x alone is kept for the backward pass.

    Args:
        x: [B, C, H, W].
        convolution: without bias; its weight is differentiable.
        others: as for `simfast.ops.batch_norm_act`, but that weight and bias of the norm are constants.

    Raises:
        ValueError: a convolution with a bias, or a weight or bias of the norm that is trained.
    """
    if convolution.bias is not None or weight.requires_grad or bias.requires_grad:
        raise ValueError("norm_act_conv: convolution must have no bias, and weight and bias must be frozen")
    # The cast is autograd's, outside: what is kept is the weight that the convolution was computed with.
    kernel = convolution.weight.to(x.dtype)
    geometry = convolution.stride, convolution.padding, convolution.dilation, False, [0, 0], 1
    norm = running_mean, running_var, weight, bias
    return _NormActConv.apply(x, kernel, *norm, momentum, eps, cooperative, geometry)


class _NormActConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, kernel, running_mean, running_var, weight, bias, momentum, eps, cooperative, geometry
    ) -> Tensor:
        norm, more = (running_mean, running_var, weight, bias, None, True), (momentum, eps, None, 0, cooperative)
        y, mean, var = torch.ops.simfast.batch_norm_act.default(x, *norm, *more)
        ctx.save_for_backward(x, kernel, mean, var, weight, bias)
        ctx.eps, ctx.cooperative, ctx.geometry = eps, cooperative, geometry
        return torch.ops.aten.convolution.default(y, kernel, None, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, *norm = ctx.saved_tensors
        y = torch.ops.simfast.batch_norm_apply.default(x, *norm, None, True, ctx.eps)
        wanted = [True, ctx.needs_input_grad[1], False]
        grad, grad_kernel, _ = torch.ops.aten.convolution_backward.default(grad, y, kernel, None, *ctx.geometry, wanted)
        # On a GPU ReLU's cut is found from x, which is read anyway.
        options = True, True, ctx.eps, False, False, ctx.cooperative
        grad_x, *_ = torch.ops.simfast.batch_norm_act_backward.default(
            grad, None, x, None if x.is_cuda else y, *norm, *options
        )
        return grad_x, grad_kernel, *(None,) * 8
