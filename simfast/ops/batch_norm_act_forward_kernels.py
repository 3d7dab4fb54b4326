"""The forward kernels of batch_norm_act. How they go over a map: batch_norm_act_tiles.py. Contract: batch_norm_act.py.

Statistics are those of one pass, but of groups of STEPS rows: a group's mean, the squares of the distances to it, and
then the merging of Chan, Golub and LeVeque (1979). Sums of squares would lose a deviation that is small beside the
mean.
"""

# ruff: noqa: RUF005  (Triton's language takes neither unused names nor unpacking)
import triton
import triton.language as tl

from simfast.ops.batch_norm_act_tiles import load_channels, load_tiles, normalise, store, wait_for_all


@triton.jit
def _merged(partials, P, rows, M, column, C, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Mean and biased variance of a map from those of its stretches: [1, CHANNELS] each."""
    total = tl.full([BLOCK, CHANNELS], 0, tl.float32)
    for start in range(0, P, BLOCK):
        stretch = start + tl.arange(0, BLOCK)[:, None]
        there = (stretch < P) & (column < C)
        count = tl.maximum(tl.minimum(M - stretch.to(tl.int64) * rows, rows), 0).to(tl.float32)
        total += count * tl.load(partials + stretch * C + column, mask=there, other=0)
    mean = tl.sum(total, 0, keep_dims=True) / M.to(tl.float32)
    spread = tl.full([BLOCK, CHANNELS], 0, tl.float32)
    for start in range(0, P, BLOCK):
        stretch = start + tl.arange(0, BLOCK)[:, None]
        there = (stretch < P) & (column < C)
        count = tl.maximum(tl.minimum(M - stretch.to(tl.int64) * rows, rows), 0).to(tl.float32)
        own = tl.load(partials + stretch * C + column, mask=there, other=0)
        within = tl.load(partials + (P + stretch) * C + column, mask=there, other=0)
        spread += within + count * (own - mean) * (own - mean)
    return mean, tl.sum(spread, 0, keep_dims=True) / M.to(tl.float32)


@triton.jit
def _group(x, first, last, column, C, n, mean, m2, ROWS: tl.constexpr, STEPS: tl.constexpr, FULL: tl.constexpr):
    """Counts, means and squares of each row of threads, with STEPS more rows."""
    row = first + tl.arange(0, ROWS)[:, None]
    tiles = load_tiles(x, first, column, last, C, ROWS, STEPS, FULL)
    values = (tiles[0].to(tl.float32),)
    for step in tl.static_range(1, STEPS):
        values = values + (tiles[step].to(tl.float32),)
    if FULL:
        more = tl.full([ROWS, 1], STEPS, tl.float32)
    else:
        more = tl.minimum(tl.maximum((last - row + (ROWS - 1)) // ROWS, 0), STEPS).to(tl.float32)
    total = values[0]
    for step in tl.static_range(1, STEPS):
        total += values[step]
    centre = total / tl.maximum(more, 1)
    square = (values[0] - centre) * (values[0] - centre)  # 0 where there is no row at all
    for step in tl.static_range(1, STEPS):
        distance = (values[step] - centre) * (values[step] - centre)
        if not FULL:
            distance = tl.where(row + step * ROWS < last, distance, 0)
        square += distance
    share = more / tl.maximum(n + more, 1)
    apart = centre - mean
    return n + more, mean + apart * share, m2 + square + apart * apart * (n * share)


@triton.jit
def _statistics(
    x, partials, M, C, P, rows, column, stretch,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Mean of a stretch of rows, and the squared distances to it, to `partials`."""
    first = stretch.to(tl.int64) * rows
    last = tl.minimum(first + rows, M)
    n = tl.full([ROWS, 1], 0, tl.float32)
    mean = tl.full([ROWS, CHANNELS], 0, tl.float32)
    m2 = tl.full([ROWS, CHANNELS], 0, tl.float32)
    whole = (last - first) // (ROWS * STEPS) * (ROWS * STEPS) if EVEN else 0
    for start in range(first, first + whole, ROWS * STEPS):
        n, mean, m2 = _group(x, start, last, column, C, n, mean, m2, ROWS, STEPS, True)
    for start in range(first + whole, last, ROWS * STEPS):
        n, mean, m2 = _group(x, start, last, column, C, n, mean, m2, ROWS, STEPS, False)
    centre = tl.sum(n * mean, 0, keep_dims=True) / tl.sum(n, 0, keep_dims=True)
    spread = tl.sum(m2 + n * (mean - centre) * (mean - centre), 0, keep_dims=True)
    tl.store(partials + stretch * C + column, centre, mask=column < C)
    tl.store(partials + (P + stretch) * C + column, spread, mask=column < C)


@triton.jit(do_not_specialize=["M", "rows", "P"])
def batch_norm_statistics_kernel(
    x,  # in   [M, C]
    partials,  # out  float32 [2, P, C]: means of the stretches, and squared distances to them
    M,
    C,
    P,
    rows,  # of a stretch
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    EVEN: tl.constexpr,  # C is a multiple of CHANNELS
):
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    _statistics(x, partials, M, C, P, rows, column, tl.program_id(1), ROWS, CHANNELS, STEPS, EVEN)


@triton.jit
def _applied(
    x, residual, y, first, last, column, C, mean, scale, shift,
    RELU: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    values = load_tiles(x, first, column, last, C, ROWS, STEPS, FULL)
    if residual is not None:
        added = load_tiles(residual, first, column, last, C, ROWS, STEPS, FULL)
    for step in tl.static_range(0, STEPS):
        value = normalise(values[step].to(tl.float32), mean, scale, shift)
        if residual is not None:
            value += added[step].to(tl.float32)
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # NaN stays
        store(y, first + step * ROWS + tl.arange(0, ROWS)[:, None], column, last, C, value, FULL)


@triton.jit(do_not_specialize=["M", "rows", "P", "stretch_rows"])
def batch_norm_apply_kernel(
    x,  # in   [M, C]
    residual,  # in   [M, C], or None
    weight,  # in   float32 [C]
    bias,  # in   float32 [C]
    partials,  # in   float32 [2, P, C], of stretches of stretch_rows rows; None: mean and variance are given
    mean,  # in   float32 [C]; out where there are partials
    variance,  # in   float32 [C], biased; out where there are partials
    running_mean,  # inout float32 [C], or None
    running_variance,  # inout float32 [C], unbiased, or None
    y,  # out  [M, C]
    semaphores,  # inout int32, one for each block of channels: find `partials` first, in this launch; or None
    momentum,
    eps,
    M,
    C,
    P,
    stretch_rows,
    rows,  # of a program
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    STRETCHES: tl.constexpr,
    EVEN: tl.constexpr,
):
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    # From the last row to the first: what the pass before read last is still in the second-level cache.
    program = tl.num_programs(1) - 1 - tl.program_id(1)
    if semaphores is not None:
        _statistics(x, partials, M, C, P, rows, column, program, ROWS, CHANNELS, 4, EVEN)
        wait_for_all(semaphores + tl.program_id(0), tl.num_programs(1))
    if partials is None:
        centre, spread = load_channels(mean, column, C, EVEN), load_channels(variance, column, C, EVEN)
    else:
        centre, spread = _merged(partials, P, stretch_rows, M, column, C, STRETCHES, CHANNELS)
        if program == 0:
            there = column < C
            tl.store(mean + column, centre, mask=there)
            tl.store(variance + column, spread, mask=there)
            if running_mean is not None:
                old = tl.load(running_mean + column, mask=there, other=0)
                tl.store(running_mean + column, old + momentum * (centre - old), mask=there)
                old = tl.load(running_variance + column, mask=there, other=0)
                unbiased = spread * (M.to(tl.float32) / (M - 1).to(tl.float32))
                tl.store(running_variance + column, old + momentum * (unbiased - old), mask=there)
    scale = load_channels(weight, column, C, EVEN) * tl.rsqrt(spread + eps)
    shift = load_channels(bias, column, C, EVEN)
    first = program.to(tl.int64) * rows
    last = tl.minimum(first + rows, M)
    whole = (last - first) // (ROWS * STEPS) * (ROWS * STEPS) if EVEN else 0
    for start in range(first, first + whole, ROWS * STEPS):
        _applied(x, residual, y, start, last, column, C, centre, scale, shift, RELU, ROWS, STEPS, True)
    for start in range(first + whole, last, ROWS * STEPS):
        _applied(x, residual, y, start, last, column, C, centre, scale, shift, RELU, ROWS, STEPS, False)
