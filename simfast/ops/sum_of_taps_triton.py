"""The CUDA half of sum_of_taps: what launches its Triton kernels. Contract: simfast/ops/sum_of_taps.py."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from simfast.ops.checks import came
from simfast.ops.sum_of_taps_kernels import sum_of_taps_backward_kernel, sum_of_taps_kernel

VALUES = 1024  # of a program's tile
COLUMNS = 128  # of a program of the backward pass


def forward(products: Tensor, bias: Tensor, dilations: Sequence[int]) -> Tensor:
    """simfast::sum_of_taps on CUDA, in one launch. Copies products that are not contiguous."""
    batch, height, width, columns = products.shape
    classes, pixels = len(bias), batch * height * width
    if columns < (1 + 8 * len(dilations)) * classes:
        raise ValueError(
            f"sum_of_taps: products must have {1 + 8 * len(dilations)} columns for each class, {came(products)}"
        )
    _check_pixels(pixels)
    products, bias = products.contiguous(), bias.contiguous()
    out = products.new_empty(batch, height, width, classes)
    if pixels:
        tile = triton.next_power_of_2(classes)
        rows = max(VALUES // tile, 1)
        with torch.cuda.device_of(products):
            sum_of_taps_kernel[(triton.cdiv(pixels, rows),)](
                products,
                bias,
                out,
                pixels,
                height,
                width,
                N=columns,
                K=classes,
                DILATIONS=tuple(dilations),
                ROWS=rows,
                CLASSES=tile,
                num_warps=4,
            )
    return out.permute(0, 3, 1, 2)


def backward(grad: Tensor, dilations: Sequence[int], columns: int) -> Tensor:
    """simfast::sum_of_taps_backward on CUDA, in one launch. Copies a gradient that is not channels-last."""
    batch, classes, height, width = grad.shape
    pixels = batch * height * width
    _check_pixels(pixels)
    grad = grad.permute(0, 2, 3, 1).contiguous()
    products = grad.new_empty(batch, height, width, columns)
    if pixels and columns:
        rows = VALUES // COLUMNS
        with torch.cuda.device_of(grad):
            sum_of_taps_backward_kernel[(triton.cdiv(pixels, rows), triton.cdiv(columns, COLUMNS))](
                grad,
                products,
                pixels,
                height,
                width,
                N=columns,
                K=classes,
                DILATIONS=tuple(dilations),
                ROWS=rows,
                COLUMNS=COLUMNS,
                num_warps=4,
            )
    return products


def _check_pixels(pixels: int) -> None:
    if pixels >= 2**30:  # a row's number plus a dilation is to fit 32 bits
        raise ValueError(f"sum_of_taps: products must have less than 2^30 pixels, got {pixels}")
