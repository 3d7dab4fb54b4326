"""The CUDA half of nearest_l1: what launches its Triton kernels. Contract: simfast/ops/nearest.py."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from simfast.ops.checks import came
from simfast.ops.nearest_kernels import (
    nearest_l1_backward_kernel,
    nearest_l1_compare_kernel,
    nearest_l1_pick_kernel,
)

CHUNK = 256  # columns of a tile
QUERIES = 128  # whose classes are looked at together


@dataclass(frozen=True)
class Tile:
    """What one program of the first kernel holds in registers: `rows` by CHUNK values.

    The defaults keep 64 values a thread: 16 warps then fit a multiprocessor, and a query's values serve two rows of
    each thread. `lanes` threads share a row: with eight, three exchanges add up a row's sum.
    """

    rows: int = 32
    lanes: int = 8
    warps: int = 4


def forward(
    queries: Tensor,
    classes: Tensor,
    bank: Tensor,
    starts: Tensor | None,
    filled: Tensor,
    max_rows: int,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """simfast::nearest_l1 on CUDA, in two launches: distances, rows, signs. Copies what is not contiguous in D."""
    tile = tile or Tile()
    num_queries, width = queries.shape
    _check_integers("classes", classes, num_queries)
    _check_integers("filled", filled, len(filled))
    if starts is not None:
        _check_integers("starts", starts, len(filled))
    num_classes, num_bank_rows = len(filled), len(bank)
    distances = queries.new_empty(num_queries, dtype=torch.float32)
    rows = queries.new_empty(num_queries, dtype=torch.int64)
    signs = queries.new_empty((num_queries, width), dtype=torch.int8)
    if num_queries == 0:
        return distances, rows, signs
    # No class can have more rows than a flat bank has.
    max_rows = max_rows if starts is None else min(max_rows, num_bank_rows)
    tiles_each, chunks = triton.cdiv(max_rows, tile.rows), triton.cdiv(width, CHUNK)
    if max(max_rows, num_queries + QUERIES, num_classes * tiles_each * tile.rows) >= 2**31:
        raise ValueError(
            "nearest_l1: queries, and the rows of all classes, must be less than 2^31, "
            f"got {num_queries} and {num_classes} times {max_rows}"
        )
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    bank = bank if bank.stride(1) == 1 else bank.contiguous()
    classes, filled = classes.contiguous(), filled.contiguous()
    starts = None if starts is None else starts.contiguous()
    shares = queries.new_empty((num_queries, chunks, max_rows), dtype=torch.float32)
    # As many programs as there are tiles if every class is full, unless classes share rows: then some take several.
    tiles = min(num_classes * tiles_each, num_bank_rows // tile.rows + num_classes, 65535)
    vector = 16 // min(queries.element_size(), bank.element_size())  # values of a thread's widest load
    lengths = num_classes, num_bank_rows, max_rows
    with torch.cuda.device_of(queries):
        if tiles * chunks:
            nearest_l1_compare_kernel[(chunks, tiles)](
                queries,
                queries.stride(0),
                classes,
                bank,
                bank.stride(0),
                starts,
                filled,
                shares,
                1,
                num_queries,
                *lengths,
                width,
                chunks,
                CLASSES=triton.next_power_of_2(num_classes),
                QUERIES=QUERIES,
                ROWS=tile.rows,
                WIDTH=tile.lanes * vector,
                STEPS=CHUNK // (tile.lanes * vector),
                LANES=tile.lanes,
                EVEN=width % CHUNK == 0,
                num_warps=tile.warps,
            )
        num_chunks = triton.next_power_of_2(max(chunks, 1))
        nearest_l1_pick_kernel[(num_queries,)](
            queries,
            queries.stride(0),
            classes,
            bank,
            bank.stride(0),
            starts,
            filled,
            shares,
            distances,
            rows,
            signs,
            *lengths,
            chunks,
            D=width,
            CHUNKS=num_chunks,
            ROWS=max(4096 // num_chunks, 1),
            WIDTH=2048,
            num_warps=8,
        )
    return distances, rows, signs


def backward(grad: Tensor, rows: Tensor, signs: Tensor, dtype: torch.dtype) -> Tensor:
    """simfast::nearest_l1_backward on CUDA, in one launch."""
    num_queries, width = signs.shape
    _check_integers("rows", rows, num_queries)
    if grad.shape != (num_queries,):
        raise ValueError(f"nearest_l1_backward: grad must be [{num_queries}], {came(grad)}")
    rows, signs = rows.contiguous(), signs.contiguous()
    grad_queries = signs.new_empty(signs.shape, dtype=dtype)
    if signs.numel():
        with torch.cuda.device_of(signs):
            nearest_l1_backward_kernel[(num_queries,)](
                grad, grad.stride(0), rows, signs, grad_queries, D=width, WIDTH=1024, num_warps=4
            )
    return grad_queries


def _check_integers(name: str, x: Tensor, length: int) -> None:
    """What the kernels read by index: the operator may be called by itself, without the checks of nearest.py."""
    if x.dtype != torch.int64 or x.shape != (length,):
        raise ValueError(f"nearest_l1: {name} must be int64 [{length}], {came(x)}")
