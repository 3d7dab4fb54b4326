"""Ways to compute a convolution and its two gradients, each deterministic, and a convolution whose ways are chosen."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DIRECTIONS = ("forward", "grad_input", "grad_weight")
WAYS = {
    "cudnn": "what torch takes: on a GPU, cuDNN",
    "native": "torch's own: gathered columns, a matrix product by cuBLAS, and the input's gradient gathered back",
    "product": "of 1x1 convolutions of stride 1: one matrix product over channels-last pixels",
}


class Geometry(NamedTuple):
    """All of a convolution but values; without bias and groups."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    dtype: torch.dtype
    channels_last: bool

    @property
    def ways(self) -> tuple[str, ...]:
        """Those that this convolution can be computed by; the first is the usual one."""
        plain = self.weight[2:] == self.stride == self.dilation == (1, 1) and self.padding == (0, 0)
        return ("cudnn", "native", "product") if plain else ("cudnn", "native")

    def __str__(self) -> str:
        kind, layout = str(self.dtype).removeprefix("torch."), "channels-last" if self.channels_last else "contiguous"
        settings = f"stride {self.stride}, padding {self.padding}, dilation {self.dilation}"
        return f"{kind} {list(self.input)} {layout}, weight {list(self.weight)}, {settings}"


Run = Callable[[str, Geometry, tuple[Tensor, Tensor, Tensor | None]], Tensor]
"""One of DIRECTIONS, computed by a way of its choice: of (x, weight, gradient of the result; None for "forward")."""


def compute(way: str, direction: str, geometry: Geometry, x: Tensor, weight: Tensor, grad: Tensor | None) -> Tensor:
    """The convolution, or one of its gradients, by one of the geometry's ways; maps in x's layout."""
    if way == "product":
        return _product(direction, x, weight, grad)
    settings = geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), 1
    with _without_cudnn() if way == "native" else contextlib.nullcontext():
        if direction == "forward":
            result = torch.ops.aten.convolution.default(x, weight, None, *settings)
        else:
            wanted = [direction == "grad_input", direction == "grad_weight", False]
            both = torch.ops.aten.convolution_backward.default(grad, x, weight, None, *settings, wanted)
            result = both[wanted.index(True)]
    if way == "native" and geometry.channels_last and direction != "grad_weight":
        return result.contiguous(memory_format=torch.channels_last)
    return result


def convolve(x: Tensor, weight: Tensor, stride, padding, dilation, run: Run) -> Tensor:
    """The convolution of maps without bias, whose forward pass and gradients `run` computes; differentiable once."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    settings = tuple(stride), tuple(padding), tuple(dilation)
    geometry = Geometry(tuple(x.shape), tuple(weight.shape), *settings, x.dtype, channels_last)
    return _Convolution.apply(x, weight, geometry, run)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, geometry: Geometry, run: Run) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.run = geometry, run
        return run("forward", geometry, (x, weight, None))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = *ctx.saved_tensors, grad
        wanted = zip(DIRECTIONS[1:], ctx.needs_input_grad, strict=False)
        return (
            *(ctx.run(direction, ctx.geometry, inputs) if needed else None for direction, needed in wanted),
            None,
            None,
        )


def _product(direction: str, x: Tensor, weight: Tensor, grad: Tensor | None) -> Tensor:
    pixels, matrix = _pixels(x if grad is None or direction == "grad_weight" else grad), weight.flatten(1)
    if direction == "grad_weight":
        return (_pixels(grad).T @ pixels).view(weight.shape)
    product = pixels @ (matrix.T if direction == "forward" else matrix)
    maps = product.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
    return maps if x.is_contiguous(memory_format=torch.channels_last) else maps.contiguous()


def _pixels(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    # Not torch.backends.cudnn.flags, which sets all the others of its flags too.
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
