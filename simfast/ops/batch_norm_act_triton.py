"""The CUDA half of batch_norm_act: what launches its Triton kernels. Contract: simfast/ops/batch_norm_act.py."""

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from simfast.ops.batch_norm_act_backward_kernels import (
    batch_norm_backward_apply_kernel,
    batch_norm_backward_sums_kernel,
)
from simfast.ops.batch_norm_act_forward_kernels import batch_norm_apply_kernel, batch_norm_statistics_kernel

WARPS = 8
PROGRAMS = 264  # at most: two on each multiprocessor of an H100; of any GPU, for the order of sums follows from it
RESIDENT = 2  # programs of these kernels that fit a multiprocessor together, by their registers
MAX_STRETCHES = 128  # of one map: every program that applies adds up as many
STRETCHES = 32  # that are added up at once
MOST_BLOCKS = 1024  # of channels, for which there are semaphores


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _Tiling:
    """How a map [B, C, H, W] is cut: constants of the kernels, the grid, and the rows of a program."""

    def __init__(self, x: Tensor):
        images, self.channels, height, width = x.shape
        self.pixels = images * height * width
        vector = 16 // x.element_size()  # values of a thread's load
        # Few channels: narrower blocks, so that there are enough programs without more stretches.
        block = min(32 if self.channels <= 64 else 64, triton.next_power_of_2(max(self.channels, vector)))
        rows = 32 * WARPS * vector // block
        blocks = triton.cdiv(self.channels, block)
        most = min(PROGRAMS // blocks, MAX_STRETCHES, triton.cdiv(self.pixels, 2 * rows))
        self.rows = triton.cdiv(self.pixels, max(most, 1))
        self.stretches = triton.cdiv(self.pixels, self.rows)
        self.grid = blocks, self.stretches
        self.constants: dict[str, Any] = {
            "ROWS": rows,
            "CHANNELS": block,
            "EVEN": self.channels % block == 0,
            "num_warps": WARPS,
        }

    def partials(self, x: Tensor) -> Tensor:
        """Room for two sums of each stretch and channel."""
        return x.new_empty((2, self.stretches, self.channels), dtype=torch.float32)

    def semaphores(self, x: Tensor) -> Tensor | None:
        """One for each block of channels, of the current stream; None where the programs do not fit the GPU at once."""
        if not self.constants["EVEN"]:  # the masks of a block that is not full take more registers than RESIDENT has
            return None
        blocks, stretches = self.grid
        if blocks * stretches > RESIDENT * _multiprocessors(x.device) or blocks > MOST_BLOCKS:
            return None
        key = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
        found = _semaphores.get(key)
        if found is None:
            found = torch.zeros(MOST_BLOCKS, dtype=torch.int32, device=x.device)
            if not torch.cuda.is_current_stream_capturing():  # else they are zero in the graph's replays alone
                _semaphores[key] = found
        return found


def statistics(x: Tensor) -> tuple[Tensor, int]:
    """Means of stretches of the pixels, and squared distances to them, float32 [2, P, C]; and how long they are."""
    tiling = _Tiling(x)
    partials = tiling.partials(x)
    batch_norm_statistics_kernel[tiling.grid](
        x, partials, tiling.pixels, tiling.channels, tiling.stretches, tiling.rows, STEPS=4, **tiling.constants
    )
    return partials, tiling.rows


def forward(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    momentum: float,
    eps: float,
    partials: Tensor | None,
    stretch_rows: int,
    cooperative: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """simfast::batch_norm_act on CUDA, in two launches, or one where statistics are given or programs may wait for each
    other: y, mean, variance.
    """
    x = _channels_last(x)
    mean, variance = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    running, semaphores = (running_mean, running_var), None
    with torch.cuda.device_of(x):
        if partials is None:
            tiling = _Tiling(x)
            semaphores = tiling.semaphores(x) if cooperative else None
            if semaphores is None:
                partials, stretch_rows = statistics(x)
            else:
                partials, stretch_rows = tiling.partials(x), tiling.rows
        sums = partials, stretch_rows, running, momentum, semaphores
        y = _apply(x, mean, variance, weight, bias, residual, relu, eps, *sums)
    return y, mean, variance


def apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> Tensor:
    """simfast::batch_norm_apply on CUDA, in one launch."""
    with torch.cuda.device_of(x):
        return _apply(_channels_last(x), mean, variance, weight, bias, residual, relu, eps)


def _apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
    partials: Tensor | None = None,
    stretch_rows: int = 0,
    running: tuple[Tensor | None, Tensor | None] = (None, None),
    momentum: float = 0.0,
    semaphores: Tensor | None = None,
) -> Tensor:
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    tiling = _Tiling(x)
    batch_norm_apply_kernel[tiling.grid](
        x,
        None if residual is None else _channels_last(residual),
        weight,
        bias,
        partials,
        mean,
        variance,
        *running,
        y,
        semaphores,
        momentum,
        eps,
        tiling.pixels,
        tiling.channels,
        0 if partials is None else partials.shape[1],
        stretch_rows,
        tiling.rows,
        RELU=relu,
        STEPS=4 if residual is None and semaphores is None else 2,
        STRETCHES=STRETCHES,
        **tiling.constants,
        **_together(semaphores),
    )
    return y


def backward(
    grad: Tensor,
    again: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
    training: bool,
    eps: float,
    needs_residual: bool,
    needs_affine: bool,
    cooperative: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """simfast::batch_norm_act_backward on CUDA, in two launches, or one where no sums are needed or programs may wait
    for each other.
    """
    grad, x = _channels_last(grad), _channels_last(x)
    again = None if again is None else _channels_last(again)
    y = None if y is None else _channels_last(y)
    grad_x = torch.empty_like(x)
    grad_residual = torch.empty_like(x) if needs_residual else x.new_empty(0)
    grad_weight, grad_bias = (torch.empty_like(p) if needs_affine else x.new_empty(0) for p in (weight, bias))
    if x.numel() == 0:
        return grad_x, grad_residual, grad_weight.zero_(), grad_bias.zero_()
    tiling = _Tiling(x)
    sizes = tiling.pixels, tiling.channels
    constants = tiling.constants | {"STEPS": 2}
    norm = mean, variance, weight, bias
    out = grad_residual if needs_residual else None
    with torch.cuda.device_of(x):
        partials = semaphores = None
        if training or needs_affine:
            partials, semaphores = tiling.partials(x), tiling.semaphores(x) if cooperative else None
        if partials is not None and semaphores is None:
            batch_norm_backward_sums_kernel[tiling.grid](
                *(grad, again, x, y, *norm, out, partials, eps, *sizes, tiling.stretches, tiling.rows),
                RELU=relu,
                **constants,
            )
            if out is not None:  # which has all that comes before the second pass
                grad, again, y, out, relu = out, None, None, None, False
        affine = (grad_weight, grad_bias) if needs_affine else (None, None)
        batch_norm_backward_apply_kernel[tiling.grid](
            *(grad, again, x, y, *norm, partials, semaphores, grad_x, out, *affine),
            *(eps, *sizes, tiling.stretches, tiling.rows),
            RELU=relu,
            TRAINING=training,
            STRETCHES=STRETCHES,
            **constants,
            **_together(semaphores),
        )
    return grad_x, grad_residual, grad_weight, grad_bias


def _together(semaphores: Tensor | None) -> dict[str, bool]:
    """Options of a launch whose programs wait for each other: all are on the device at once, or CUDA refuses it."""
    return {} if semaphores is None else {"launch_cooperative_grid": True}


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


_semaphores: dict[tuple[int, int], Tensor] = {}
