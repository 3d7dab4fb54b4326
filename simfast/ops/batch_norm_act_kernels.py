"""The Triton kernels of batch_norm_act. What launches them: batch_norm_act_triton.py. Contract: batch_norm_act.py.

A map is read as M pixels (rows) of C channels each, one after the other. All four kernels are bound by memory: what
counts is how often a map is passed over, and how many bytes are on their way at a time. So a program takes a block of
channels and a stretch of rows, and every thread holds one load of 16 bytes in each of STEPS tiles at once.

Sums over a map are taken in two levels: each program leaves those of its stretch, and every program of the next kernel
adds up the few stretches of its channels before it begins, in the same order. That takes neither atomics nor a launch
of its own, and gives the same bits in every run. Within a stretch each thread has sums of its own: threads meet, at a
barrier, once at its end.

Statistics are those of one pass, but of groups of STEPS rows: a group's mean, the squares of the distances to it, and
then the merging of Chan, Golub and LeVeque (1979). Sums of squares would lose a deviation that is small beside the
mean.
"""

# ruff: noqa: B007, RUF005  (Triton's language takes neither unused names nor unpacking)
import triton
import triton.language as tl


@triton.jit
def _tiles(pointer, first, column, last, C, ROWS: tl.constexpr, STEPS: tl.constexpr, FULL: tl.constexpr):
    """STEPS tiles of a map, all asked for before any is used; 0 beyond `last` and the channels, where not FULL."""
    row = first + tl.arange(0, ROWS)[:, None]
    at = pointer + row.to(tl.int64) * C + column
    tiles = (tl.load(at) if FULL else tl.load(at, mask=(row < last) & (column < C), other=0),)
    for step in tl.static_range(1, STEPS):
        row += ROWS
        at = pointer + row.to(tl.int64) * C + column
        tiles = tiles + (tl.load(at) if FULL else tl.load(at, mask=(row < last) & (column < C), other=0),)
    return tiles


@triton.jit
def _put(pointer, row, column, last, C, value, FULL: tl.constexpr):
    """Rounds to the map's dtype."""
    at = pointer + row.to(tl.int64) * C + column
    if FULL:
        tl.store(at, value.to(pointer.dtype.element_ty))
    else:
        tl.store(at, value.to(pointer.dtype.element_ty), mask=(row < last) & (column < C))


@triton.jit
def _channels(pointer, column, C, EVEN: tl.constexpr):
    """A float32 value for each channel."""
    if EVEN:
        return tl.load(pointer + column).to(tl.float32)
    return tl.load(pointer + column, mask=column < C, other=0).to(tl.float32)


@triton.jit
def _normal(x, mean, scale, bias):
    """The one place where values are normalised: forward and backward must find the same signs."""
    return tl.fma(x - mean, scale, bias)


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
    tiles = _tiles(x, first, column, last, C, ROWS, STEPS, FULL)
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
    values = _tiles(x, first, column, last, C, ROWS, STEPS, FULL)
    if residual is not None:
        added = _tiles(residual, first, column, last, C, ROWS, STEPS, FULL)
    for step in tl.static_range(0, STEPS):
        value = _normal(values[step].to(tl.float32), mean, scale, shift)
        if residual is not None:
            value += added[step].to(tl.float32)
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # NaN stays
        _put(y, first + step * ROWS + tl.arange(0, ROWS)[:, None], column, last, C, value, FULL)


@triton.jit
def _wait_for_all(semaphore, programs):
    """Until all programs of these channels are here; what they have stored is then seen.

    The scheme of CUDA's cooperative groups: the first program adds what brings the sum of all to 2^31, so that the top
    bit flips when the last one comes, and the semaphore, 0 before its first use, serves again and again.
    """
    tl.debug_barrier()
    leads = tl.program_id(1) == 0
    arrived = tl.atomic_add(semaphore, tl.where(leads, 2147483647 - (programs - 2), 1), sem="release")
    waiting = True
    while waiting:
        now = tl.atomic_add(semaphore, 0, sem="acquire")
        waiting = (arrived ^ now) >= 0
    tl.debug_barrier()


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
        _wait_for_all(semaphores + tl.program_id(0), tl.num_programs(1))
    if partials is None:
        centre, spread = _channels(mean, column, C, EVEN), _channels(variance, column, C, EVEN)
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
    scale = _channels(weight, column, C, EVEN) * tl.rsqrt(spread + eps)
    shift = _channels(bias, column, C, EVEN)
    first = program.to(tl.int64) * rows
    last = tl.minimum(first + rows, M)
    whole = (last - first) // (ROWS * STEPS) * (ROWS * STEPS) if EVEN else 0
    for start in range(first, first + whole, ROWS * STEPS):
        _applied(x, residual, y, start, last, column, C, centre, scale, shift, RELU, ROWS, STEPS, True)
    for start in range(first + whole, last, ROWS * STEPS):
        _applied(x, residual, y, start, last, column, C, centre, scale, shift, RELU, ROWS, STEPS, False)


@triton.jit
def _gradients(
    grad, again, x, y, grad_residual, first, last, column, C, mean, scale, shift,
    RELU: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """STEPS tiles of the gradient before the ReLU, rounded as it is stored, and as many of x less its mean."""
    given = _tiles(grad, first, column, last, C, ROWS, STEPS, FULL)
    if again is not None:
        more = _tiles(again, first, column, last, C, ROWS, STEPS, FULL)
    values = _tiles(x, first, column, last, C, ROWS, STEPS, FULL)
    if RELU and y is not None:
        outputs = _tiles(y, first, column, last, C, ROWS, STEPS, FULL)
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
                output = _normal(value, mean, scale, shift).to(values[step].dtype).to(tl.float32)
            g = tl.where(output <= 0, 0.0, g)
        if grad_residual is not None:
            _put(grad_residual, first + step * ROWS + tl.arange(0, ROWS)[:, None], column, last, C, g, FULL)
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
    centre = _channels(mean, column, C, EVEN)
    deviation = tl.rsqrt(_channels(variance, column, C, EVEN) + eps)
    scale, shift = _channels(weight, column, C, EVEN) * deviation, _channels(bias, column, C, EVEN)
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
    program = tl.num_programs(1) - 1 - tl.program_id(1)  # as above
    centre = _channels(mean, column, C, EVEN)
    deviation = tl.rsqrt(_channels(variance, column, C, EVEN) + eps)
    scale, shift = _channels(weight, column, C, EVEN) * deviation, _channels(bias, column, C, EVEN)
    maps = (grad, again, x, y, grad_residual)
    if semaphores is not None:
        _backward_sums(
            *maps, partials, M, C, P, rows, column, program,
            centre, deviation, scale, shift, RELU, ROWS, CHANNELS, STEPS, EVEN,
        )  # fmt: skip
        _wait_for_all(semaphores + tl.program_id(0), tl.num_programs(1))
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
            _put(grad_x, start + step * ROWS + tl.arange(0, ROWS)[:, None], column, last, C, value * scale, True)
    for start in range(first + whole, last, ROWS):
        g, away = _gradients(*maps, start, last, column, C, centre, scale, shift, CUT, ROWS, 1, False)
        value = g[0]
        if TRAINING:
            value = value - average - away[0] * slope
        _put(grad_x, start + tl.arange(0, ROWS)[:, None], column, last, C, value * scale, False)
