"""The CUDA half of nearest_l1: three Triton kernels and what launches them. Contract: simfast/ops/nearest.py.

Where the time goes, at 118 queries against 11 banks of 500 and 8 of 50 rows, D 2048: every row is needed by up to 10
queries, a subtraction and an addition for each of 0.11 G pairs of values, which takes about as long as reading 23 MB of
bfloat16 rows from memory. So a program holds a tile of rows in registers, read once, and takes the queries of its class
to it one by one. Nothing is padded to a number of queries, and nothing but the rows comes from memory: the queries stay
in the second-level cache, and the four warps of a program, with four rows each, share what they fetch in the first.

A class with few queries or rows costs in proportion, an absent one next to nothing: its programs leave at once. Queries
may come in any order; those of a class are found as bits of a mask, 32 queries at a time, without a list or a sort.

D is cut into chunks because a tile of full width does not fit the registers. Each program writes its share of the
distances, and a second kernel adds the shares, takes the minimum and notes the signs for the gradient: the same bits in
every run, without atomics.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 256  # of one program; a multiple of 32
NOTHING = tl.constexpr(2**63 - 1)  # a key above all others


@dataclass(frozen=True)
class Tile:
    """What one program of the first kernel holds in registers: `rows` by 4 * `width` values.

    The defaults keep 64 values a thread: 16 warps then fit a multiprocessor, a query's values serve a warp's four rows,
    and a load of float32 is 512 bytes of one row.
    """

    rows: int = 16
    width: int = 128
    warps: int = 4


@triton.jit
def _class_rows(starts, filled, k, num_bank_rows, max_rows, mask):
    """First bank row of class k, and how many are valid: no value in `starts` or `filled` leads outside the bank."""
    start = k * max_rows if starts is None else tl.load(starts + k, mask=mask, other=0)
    count = tl.minimum(tl.load(filled + k, mask=mask, other=0), max_rows)
    return start, tl.where(start < 0, 0, tl.minimum(count, num_bank_rows - start))


@triton.jit
def _load_four(at, step: tl.constexpr, column, num_columns, rows_mask, ROWS_MASKED: tl.constexpr, EVEN: tl.constexpr):
    """The tiles at columns 0, 1, 2, 3 times `step`, as float32; 0 outside. Unmasked where possible: what a mask guards
    is loaded once for every row that shares it."""
    if EVEN and not ROWS_MASKED:
        a, b = tl.load(at), tl.load(at + step)
        c, d = tl.load(at + 2 * step), tl.load(at + 3 * step)
    else:
        a = tl.load(at, mask=rows_mask & (column < num_columns), other=0)
        b = tl.load(at + step, mask=rows_mask & (column + step < num_columns), other=0)
        c = tl.load(at + 2 * step, mask=rows_mask & (column + 2 * step < num_columns), other=0)
        d = tl.load(at + 3 * step, mask=rows_mask & (column + 3 * step < num_columns), other=0)
    return a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)


@triton.jit
def nearest_l1_compare_kernel(
    queries,  # in   [N, D], rows query_stride apart
    query_stride,
    classes,  # in   int64 [N]
    bank,  # in   [T, D], rows bank_stride apart
    bank_stride,
    starts,  # in   int64 [K], or None: k * R
    filled,  # in   int64 [K]
    shares,  # out  float32 [N, chunks, R]: of each query's distance to each filled row of its class
    N,
    K,
    T,
    R,
    D,
    tiles,
    chunks,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    EVEN: tl.constexpr,  # D is a multiple of 4 * WIDTH
):
    program = tl.program_id(0)
    row0 = program % tiles * ROWS
    chunk = program // tiles % chunks
    k = program // tiles // chunks % K
    query0 = program // tiles // chunks // K * QUERIES
    start, count = _class_rows(starts, filled, k.to(tl.int64), T, R, True)
    query = query0 + tl.arange(0, QUERIES)
    wanted = tl.max((tl.load(classes + query, mask=query < N, other=-1) == k).to(tl.int32), 0)
    if (row0 < count) & (wanted > 0):
        row = row0 + tl.arange(0, ROWS)
        filled_row = (row < count)[:, None]
        # Two dimensions, and a width that one warp spans: the warps then lie along the rows, a row's sum stays within
        # one warp, and bank and query tiles have one layout: the loop below moves no tile through shared memory.
        column = (chunk * (4 * WIDTH) + tl.arange(0, WIDTH))[None, :]
        bank_at = bank + (start + row)[:, None] * bank_stride + column
        b0, b1, b2, b3 = _load_four(bank_at, WIDTH, column, D, filled_row, True, EVEN)
        out = shares + chunk * R.to(tl.int64) + row
        bit = tl.arange(0, 32)
        base = query0
        while base < tl.minimum(query0 + QUERIES, N):
            k_of = tl.load(classes + base + bit, mask=base + bit < N, other=-1)
            mine = tl.sum(tl.where(k_of == k, 1 << bit, 0), 0)
            while mine != 0:
                lowest = mine & -mine
                mine ^= lowest
                # The number of the bit is the exponent of its value as a float.
                exponent = lowest.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23
                n = (base + exponent - 127).to(tl.int64)
                query_at = tl.broadcast_to(queries + n * query_stride + column, (ROWS, WIDTH))
                q0, q1, q2, q3 = _load_four(query_at, WIDTH, column, D, filled_row, False, EVEN)
                share = (tl.abs(q0 - b0) + tl.abs(q1 - b1)) + (tl.abs(q2 - b2) + tl.abs(q3 - b3))
                tl.store(out + n * chunks * R, tl.sum(share, 1), mask=row < count)
            base += 32


@triton.jit
def nearest_l1_pick_kernel(
    queries,  # in   as above
    query_stride,
    classes,
    bank,
    bank_stride,
    starts,
    filled,
    shares,  # in   float32 [N, chunks, R]
    distances,  # out  float32 [N]
    rows,  # out  int64 [N]
    signs,  # out  int8 [N, D]
    K,
    T,
    R,
    chunks,
    D: tl.constexpr,
    CHUNKS: tl.constexpr,  # a power of two, at least chunks
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    k = tl.load(classes + n)
    known = (k >= 0) & (k < K)
    start, count = _class_rows(starts, filled, k, T, R, known)
    count = tl.where(known, count, 0)
    chunk = tl.arange(0, CHUNKS)[:, None]
    best = tl.full([], NOTHING, tl.int64)
    row0 = tl.full([], 0, tl.int64)
    while row0 < count:
        row = row0 + tl.arange(0, ROWS)
        at = shares + (n * chunks + chunk) * R + row[None, :]
        distance = tl.sum(tl.load(at, mask=(chunk < chunks) & (row < count)[None, :], other=0), 0)
        # Distances are not negative, so their bits order as they do. NaN counts as less than any number, as arg-min has
        # it. With the row below, the least key is the nearest row, the lowest on ties.
        bits = tl.where(distance == distance, distance.to(tl.int32, bitcast=True), -1)
        key = (bits.to(tl.int64) << 32) | row.to(tl.int64)
        best = tl.minimum(best, tl.min(tl.where(row < count, key, NOTHING), 0))
        row0 += ROWS
    found = best != NOTHING
    nearest = tl.where(found, best & 0xFFFFFFFF, -1)
    tl.store(rows + n, nearest)
    # All bits set, which is the key of NaN, are a NaN.
    tl.store(distances + n, tl.where(found, (best >> 32).to(tl.int32).to(tl.float32, bitcast=True), float("inf")))
    readable = tl.where(found, D, 0)  # columns of either side: where no row was found, both are 0
    for column0 in range(0, D, WIDTH):
        column = column0 + tl.arange(0, WIDTH)
        q = tl.load(queries + n * query_stride + column, mask=column < readable, other=0).to(tl.float32)
        at = bank + (start + nearest) * bank_stride + column
        b = tl.load(at, mask=column < readable, other=0).to(tl.float32)
        tl.store(signs + n * D + column, (q > b).to(tl.int8) - (q < b).to(tl.int8), mask=column < D)


@triton.jit
def nearest_l1_backward_kernel(
    grad,  # in   float32 [N], grad_stride apart
    grad_stride,
    rows,  # in   int64 [N]
    signs,  # in   int8 [N, D]
    grad_queries,  # out  [N, D]
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    found = tl.load(rows + n) >= 0
    scale = tl.load(grad + n * grad_stride)
    for column0 in range(0, D, WIDTH):
        column = column0 + tl.arange(0, WIDTH)
        sign = tl.load(signs + n * D + column, mask=column < D, other=0).to(tl.float32)
        # Not a product with 0: what came from an infinite distance may be infinite or NaN.
        value = tl.where(found, scale * sign, 0.0)
        tl.store(grad_queries + n * D + column, value.to(grad_queries.dtype.element_ty), mask=column < D)


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
    num_classes = len(filled)
    distances = queries.new_empty(num_queries, dtype=torch.float32)
    rows = queries.new_empty(num_queries, dtype=torch.int64)
    signs = queries.new_empty((num_queries, width), dtype=torch.int8)
    if num_queries == 0:
        return distances, rows, signs
    queries = queries if queries.stride(1) == 1 else queries.contiguous()
    bank = bank if bank.stride(1) == 1 else bank.contiguous()
    classes, filled = classes.contiguous(), filled.contiguous()
    starts = None if starts is None else starts.contiguous()
    tiles, chunks = triton.cdiv(max_rows, tile.rows), triton.cdiv(width, 4 * tile.width)
    shares = queries.new_empty((num_queries, chunks, max_rows), dtype=torch.float32)
    programs = triton.cdiv(num_queries, QUERIES) * num_classes * chunks * tiles
    with torch.cuda.device_of(queries):
        if programs:
            nearest_l1_compare_kernel[(programs,)](
                queries,
                queries.stride(0),
                classes,
                bank,
                bank.stride(0),
                starts,
                filled,
                shares,
                num_queries,
                num_classes,
                len(bank),
                max_rows,
                width,
                tiles,
                chunks,
                ROWS=tile.rows,
                WIDTH=tile.width,
                QUERIES=QUERIES,
                EVEN=width % (4 * tile.width) == 0,
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
            num_classes,
            len(bank),
            max_rows,
            chunks,
            D=width,
            CHUNKS=num_chunks,
            ROWS=max(2048 // num_chunks, 1),
            WIDTH=1024,
            num_warps=4,
        )
    return distances, rows, signs


def backward(grad: Tensor, rows: Tensor, signs: Tensor, dtype: torch.dtype) -> Tensor:
    """simfast::nearest_l1_backward on CUDA, in one launch."""
    num_queries, width = signs.shape
    grad_queries = signs.new_empty(signs.shape, dtype=dtype)
    if signs.numel():
        with torch.cuda.device_of(signs):
            nearest_l1_backward_kernel[(num_queries,)](
                grad, grad.stride(0), rows, signs, grad_queries, D=width, WIDTH=1024, num_warps=4
            )
    return grad_queries
