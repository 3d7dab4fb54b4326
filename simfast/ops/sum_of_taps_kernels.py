"""The Triton kernels of sum_of_taps. What launches them: sum_of_taps_triton.py. Contract: sum_of_taps.py.

Forward reads each product once, 33 of each of 19 classes for four dilations: a program's loads of different taps do not
wait for each other, and neighbouring lanes read neighbouring classes. Backward writes each product's gradient once and
reads the incoming gradient, which is small, from the caches: its programs go by columns of the products, so that what
they write is contiguous.

Sizes of maps are no constants: the JIT would compile anew for each. Counts of columns and classes are, of which a
network has one each; what divides the columns decides how wide the stores are.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M", "H", "W"])
def sum_of_taps_kernel(
    products,  # in   [M, N], M = B H W
    bias,  # in   float32 [K]
    out,  # out  [M, K]
    M,
    H,
    W,
    N: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,  # a power of two, at least K
):
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, CLASSES)
    inside, known = pixel < M, (k < K)[None, :]
    x, y = pixel % W, pixel // W % H
    row = pixel.to(tl.int64) * N
    mask = inside[:, None] & known
    total = tl.load(bias + k, mask=k < K, other=0)[None, :]
    total = total + tl.load(products + row[:, None] + k[None, :], mask=mask, other=0).to(tl.float32)
    for i in tl.static_range(len(DILATIONS)):
        for place in tl.static_range(9):
            if place != 4:  # the centre, which all share
                dy = (place // 3 - 1) * DILATIONS[i]
                dx = (place % 3 - 1) * DILATIONS[i]
                tap = 1 + 8 * i + place - (place > 4)
                there = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
                # As a distance in 64 bits: a dilation beyond the map may be any number.
                at = row + (W.to(tl.int64) * dy + dx) * N + tap * K
                value = tl.load(products + at[:, None] + k[None, :], mask=there[:, None] & known, other=0)
                total += value.to(tl.float32)
    at = pixel.to(tl.int64)[:, None] * K + k[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "H", "W"])
def sum_of_taps_backward_kernel(
    grad,  # in   [M, K], M = B H W
    products,  # out  [M, N], their gradient
    M,
    H,
    W,
    N: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    tap, k = column // K, column % K
    place = (tap + 7) % 8
    place = tl.where(tap == 0, 4, place + (place >= 4))
    dilation = tl.zeros([COLUMNS], tl.int32)
    for i in tl.static_range(len(DILATIONS)):
        dilation = tl.where((tap + 7) // 8 == i + 1, DILATIONS[i], dilation)
    dy, dx = (place // 3 - 1) * dilation, (place % 3 - 1) * dilation
    # Of the pixel to whose sum this product went.
    y = (pixel // W % H)[:, None] - dy[None, :]
    x = (pixel % W)[:, None] - dx[None, :]
    there = (pixel < M)[:, None] & (tap < 1 + 8 * len(DILATIONS))[None, :]
    there = there & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    distance = dy.to(tl.int64) * W + dx
    at = (pixel.to(tl.int64)[:, None] - distance[None, :]) * K + k[None, :]
    value = tl.load(grad + at, mask=there, other=0)
    to = pixel.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(products + to, value, mask=(pixel < M)[:, None] & (column < N)[None, :])
