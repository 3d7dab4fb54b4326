"""The backward kernels of batch_norm_act. How they go over a map: batch_norm_act_tiles.py. Contract: batch_norm_act.py.

One pass for two sums over the gradient, where the statistics are the map's own, and one that applies them.
"""

# ruff: noqa: RUF005  (Triton's language takes neither unused names nor unpacking)
import triton
import triton.language as tl

from simfast.ops.batch_norm_act_tiles import load_channels, load_tiles, normalise, store, wait_for_all


@triton.jit
def _add_up(first, second, P, column, C, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums over the stretches of two things [P, C]."""
    a = tl.full([BLOCK, CHANNELS], 0, tl.float32)
    b = tl.full([BLOCK, CHANNELS], 0, tl.float32)
    for start in range(0, P, BLOCK):
        stretch = start + tl.arange(0, BLOCK)[:, None]
        there = (stretch < P) & (column < C)
        a += tl.load(first + stretch * C + column, mask=there, other=0)
        b += tl.load(second + stretch * C + column, mask=there, other=0)
    return tl.sum(a, 0, keep_dims=True), tl.sum(b, 0, keep_dims=True)


@triton.jit
def _gradients(
    grad, again, x, y, grad_residual, first, last, column, C, mean, scale, shift,
    RELU: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """STEPS tiles of the gradient before the ReLU, rounded as it is stored, and as many of x less its mean."""
    given = load_tiles(grad, first, column, last, C, ROWS, STEPS, FULL)
    if again is not None:
        more = load_tiles(again, first, column, last, C, ROWS, STEPS, FULL)
    values = load_tiles(x, first, column, last, C, ROWS, STEPS, FULL)
    if RELU and y is not None:
        outputs = load_tiles(y, first, column, last, C, ROWS, STEPS, FULL)
    gradients = ()
    distances = ()
    for step in tl.static_range(0, STEPS):
        g = given[step].to(tl.float32)
        if again is not None:
            g = (g + more[step].to(tl.float32)).to(given[step].dtype).to(tl.float32)
        value = values[step].to(tl.float32)
        if RELU:
            if y is not None:
                output = outputs[step].to(tl.float32)
            else:
                output = normalise(value, mean, scale, shift).to(values[step].dtype).to(tl.float32)
            g = tl.where(output <= 0, 0.0, g)
        if grad_residual is not None:
            store(grad_residual, first + step * ROWS + tl.arange(0, ROWS)[:, None], column, last, C, g, FULL)
        gradients = gradients + (g,)
        distances = distances + (value - mean,)
    return gradients, distances


@triton.jit
def _backward_sums(
    grad, again, x, y, grad_residual, partials, M, C, P, rows, column, stretch, centre, deviation, scale, shift,
    RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Sums over a stretch of rows of the gradient, and of its products with normalised x, to `partials`."""
    first = stretch.to(tl.int64) * rows
    last = tl.minimum(first + rows, M)
    total = tl.full([ROWS, CHANNELS], 0, tl.float32)
    product = tl.full([ROWS, CHANNELS], 0, tl.float32)
    whole = (last - first) // (ROWS * STEPS) * (ROWS * STEPS) if EVEN else 0
    maps = (grad, again, x, y, grad_residual)
    for start in range(first, first + whole, ROWS * STEPS):
        g, away = _gradients(*maps, start, last, column, C, centre, scale, shift, RELU, ROWS, STEPS, True)
        for step in tl.static_range(0, STEPS):
            total += g[step]
            product += g[step] * away[step]
    for start in range(first + whole, last, ROWS):
        g, away = _gradients(*maps, start, last, column, C, centre, scale, shift, RELU, ROWS, 1, False)
        total += g[0]  # 0 beyond the last row
        product += g[0] * away[0]
    there = column < C
    tl.store(partials + stretch * C + column, tl.sum(total, 0, keep_dims=True), mask=there)
    tl.store(partials + (P + stretch) * C + column, tl.sum(product, 0, keep_dims=True) * deviation, mask=there)


@triton.jit(do_not_specialize=["M", "rows", "P"])
def batch_norm_backward_sums_kernel(
    grad,  # in   [M, C], of the output
    again,  # in   [M, C], of the output's second consumer, or None
    x,  # in   [M, C]
    y,  # in   [M, C], the output, whose signs are the ReLU's; None: found from x
    mean,  # in   float32 [C]
    variance,  # in   float32 [C]
    weight,  # in   float32 [C]
    bias,  # in   float32 [C]
    grad_residual,  # out  [M, C]: the gradient before the ReLU; or None
    partials,  # out  float32 [2, P, C]: sums of that gradient, and of its products with normalised x
    eps,
    M,
    C,
    P,
    rows,  # of a stretch
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    EVEN: tl.constexpr,
):
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    centre = load_channels(mean, column, C, EVEN)
    deviation = tl.rsqrt(load_channels(variance, column, C, EVEN) + eps)
    scale, shift = load_channels(weight, column, C, EVEN) * deviation, load_channels(bias, column, C, EVEN)
    _backward_sums(
        grad, again, x, y, grad_residual, partials, M, C, P, rows, column, tl.program_id(1),
        centre, deviation, scale, shift, RELU, ROWS, CHANNELS, STEPS, EVEN,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "rows", "P"])
def batch_norm_backward_apply_kernel(
    grad,  # in   [M, C], of the output, or what the kernel above wrote
    again,  # in   [M, C], or None
    x,  # in   [M, C]
    y,  # in   [M, C], or None
    mean,  # in   float32 [C]
    variance,  # in   float32 [C]
    weight,  # in   float32 [C]
    bias,  # in   float32 [C]
    partials,  # in   float32 [2, P, C], of the kernel above; None: no sum is needed
    semaphores,  # inout int32, one for each block of channels: find `partials` first, in this launch; or None
    grad_x,  # out  [M, C]
    grad_residual,  # out  [M, C], or None
    grad_weight,  # out  float32 [C], or None
    grad_bias,  # out  float32 [C], or None
    eps,
    M,
    C,
    P,
    rows,  # of a program
    RELU: tl.constexpr,
    TRAINING: tl.constexpr,  # mean and variance are those of x
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    STRETCHES: tl.constexpr,
    EVEN: tl.constexpr,
):
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    program = tl.num_programs(1) - 1 - tl.program_id(1)  # the last rows first, as forward
    centre = load_channels(mean, column, C, EVEN)
    deviation = tl.rsqrt(load_channels(variance, column, C, EVEN) + eps)
    scale, shift = load_channels(weight, column, C, EVEN) * deviation, load_channels(bias, column, C, EVEN)
    maps = (grad, again, x, y, grad_residual)
    if semaphores is not None:
        _backward_sums(
            *maps, partials, M, C, P, rows, column, program,
            centre, deviation, scale, shift, RELU, ROWS, CHANNELS, STEPS, EVEN,
        )  # fmt: skip
        wait_for_all(semaphores + tl.program_id(0), tl.num_programs(1))
        if grad_residual is not None:  # which has all that comes before the second pass
            maps = (grad_residual, None, x, None, None)
    CUT: tl.constexpr = RELU and (semaphores is None or grad_residual is None)
    if partials is not None:
        total, product = _add_up(partials, partials + P * C, P, column, C, STRETCHES, CHANNELS)
        if grad_weight is not None and program == 0:
            tl.store(grad_weight + column, product, mask=column < C)
            tl.store(grad_bias + column, total, mask=column < C)
    if TRAINING:
        average, slope = total / M.to(tl.float32), product * deviation / M.to(tl.float32)
    first = program.to(tl.int64) * rows
    last = tl.minimum(first + rows, M)
    whole = (last - first) // (ROWS * STEPS) * (ROWS * STEPS) if EVEN else 0
    for start in range(first, first + whole, ROWS * STEPS):
        g, away = _gradients(*maps, start, last, column, C, centre, scale, shift, CUT, ROWS, STEPS, True)
        for step in tl.static_range(0, STEPS):
            value = g[step]
            if TRAINING:
                value = value - average - away[step] * slope
            store(grad_x, start + step * ROWS + tl.arange(0, ROWS)[:, None], column, last, C, value * scale, True)
    for start in range(first + whole, last, ROWS):
        g, away = _gradients(*maps, start, last, column, C, centre, scale, shift, CUT, ROWS, 1, False)
        value = g[0]
        if TRAINING:
            value = value - average - away[0] * slope
        store(grad_x, start + tl.arange(0, ROWS)[:, None], column, last, C, value * scale, False)
