"""The Triton kernels of upsampled_cross_entropy and upsampled_softmax. What launches them: upsampled_triton.py.
Contract: upsampled.py.

Letters: B images, K classes, h w feature size, H W label size.

A cell is a square of neighbouring samples; its pixels are those whose position lies in it, so that each pixel belongs
to one cell and the gradient of a cell's four corners is a sum over its pixels alone. A program takes a cell: it reads
the logits of the corners once, walks down the cell's rows with its columns side by side, and writes the corners' shares
of the gradient at the end. A second kernel adds the up to four shares of each sample in a fixed order. No atomics, and
nothing of label size is read but labels, weights and gradients, once.

A warp is a program, and eight values a thread: the classes of a pixel lie in a few threads of that warp, which exchange
maximum and sum without shared memory; and the map, channels-last, is written 16 bytes a thread.

The JIT makes an integer argument that happens to be 1 a constant. That is wanted for the strides of the logits alone.
"""

import triton
import triton.language as tl

# The logits of classes beyond K. Finite, so that a weight of 0 leaves 0; the weighted sum of two stays finite too.
LOWEST = tl.constexpr(-3e38)


@triton.jit
def _first_pixel(cell, scale, step, many):
    """The first of `many` pixels whose position is at or behind sample `cell`, or `many`."""
    pixel = tl.minimum((cell * step).to(tl.int32), many)  # but for rounding
    while (pixel > 0) & ((pixel - 1) * scale >= cell):
        pixel -= 1
    while (pixel < many) & (pixel * scale < cell):
        pixel += 1
    return pixel


@triton.jit
def _weight(pixel, scale, sample):
    return tl.maximum(1.0 - tl.abs(pixel * scale - sample), 0.0)


@triton.jit
def _corner(logits, i, j, row_stride, column_stride, k, class_stride, K, EACH: tl.constexpr):
    """The logits of a sample, of classes k, k + 1, ... k + EACH - 1."""
    at = logits + (i.to(tl.int64) * row_stride + j.to(tl.int64) * column_stride)
    found = ()
    for v in tl.static_range(EACH):
        value = tl.load(at + (k + v).to(tl.int64) * class_stride, mask=k + v < K, other=0).to(tl.float32)
        found = found + (tl.where(k + v < K, value, LOWEST),)  # noqa: RUF005
    return found


@triton.jit
def _mixed(a, x, b, y, EACH: tl.constexpr):
    """a * x + b * y, value by value."""
    mixed = ()
    for v in tl.static_range(EACH):
        mixed = mixed + (a * x[v] + b * y[v],)  # noqa: RUF005
    return mixed


@triton.jit
def _joined(x, EACH: tl.constexpr):
    """A thread's values side by side: [N, LANES * EACH] of EACH times [N, LANES], without moving any."""
    if EACH == 8:
        x = (tl.join(x[0], x[4]), tl.join(x[1], x[5]), tl.join(x[2], x[6]), tl.join(x[3], x[7]))
    x = tl.join(tl.join(x[0], x[2]), tl.join(x[1], x[3]))
    return tl.reshape(x, [x.shape[0], x.shape[1] * EACH])


@triton.jit
def _split(x, EACH: tl.constexpr):
    """The inverse of _joined."""
    # One split a line: Triton's parser knows no nested targets.
    if EACH == 8:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 2, 2, 2]))
        e0, e2 = tl.split(even)
        e1, e3 = tl.split(odd)
        x0, x4 = tl.split(e0)
        x1, x5 = tl.split(e1)
        x2, x6 = tl.split(e2)
        x3, x7 = tl.split(e3)
        found = (x0, x1, x2, x3, x4, x5, x6, x7)
    else:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        found = (x0, x1, x2, x3)
    return found


@triton.jit(do_not_specialize=["ignore", "K", "h", "w", "H", "W"])
def upsampled_cell_kernel(
    logits,  # in   [B, K, h, w], any strides
    image_stride,
    class_stride,
    row_stride,
    column_stride,
    labels,  # in   integer [B, H, W], or None: no loss
    weights,  # in   floating [B, H, W], or None: 1
    grad,  # in   floating [B, H, W, PAD], of the softmax, or None
    maps,  # out  [B, H, W, PAD], the softmax, or None
    losses,  # out  float32 [cells]: sums over the cell's pixels, with labels
    counts,  # out  int32 [cells]: of its pixels that are not ignored
    shares,  # out  float32 [cells, 4, PAD]: of the gradient of the cell's corners, or None
    ignore,
    K,
    h,
    w,
    H,
    W,
    scale_h,  # from pixels to samples; float32, as all that is computed of them
    step_h,  # and back
    scale_w,
    step_w,
    PAD: tl.constexpr,  # K, up to a multiple of 8
    EACH: tl.constexpr,  # classes of a thread, side by side: 4 or 8
    LANES: tl.constexpr,  # threads that share a pixel: LANES * EACH is a power of two, at least PAD
    WIDTH: tl.constexpr,  # pixels of a row that are taken at once
    NARROW: tl.constexpr,  # no cell has more of them in a row
):
    cell = tl.program_id(0)
    columns, rows = tl.maximum(w - 1, 1), tl.maximum(h - 1, 1)  # of cells; one sample alone makes one
    j, i, image = cell % columns, cell // columns % rows, (cell // columns // rows).to(tl.int64)
    x_begin, y_begin = _first_pixel(j, scale_w, step_w, W), _first_pixel(i, scale_h, step_h, H)
    x_end = tl.where(j == columns - 1, W, _first_pixel(j + 1, scale_w, step_w, W))
    y_end = tl.where(i == rows - 1, H, _first_pixel(i + 1, scale_h, step_h, H))

    # EACH tensors of [WIDTH, LANES], one for each of a thread's values: the compiler cannot deal them out otherwise.
    lane = tl.arange(0, LANES)[None, :]
    k = lane * EACH
    channel = tl.arange(0, LANES * EACH)[None, :]
    below, right = tl.minimum(i + 1, h - 1), tl.minimum(j + 1, w - 1)
    at = logits + image * image_stride
    loss = tl.zeros([WIDTH, LANES], tl.float32)
    count = tl.zeros([WIDTH, LANES], tl.int32)
    nothing = ()
    for _ in tl.static_range(EACH):
        nothing = nothing + (tl.zeros([WIDTH, LANES], tl.float32),)  # noqa: RUF005
    share00, share01, share10, share11 = nothing, nothing, nothing, nothing
    # One pass is no loop to the compiler, which then needs half of the registers.
    for turn in range(0, 1 if NARROW else tl.cdiv(x_end - x_begin, WIDTH)):
        x = x_begin + turn * WIDTH + tl.arange(0, WIDTH)[:, None]
        inside = x < x_end
        left_weight, right_weight = _weight(x, scale_w, j), _weight(x, scale_w, j + 1)
        # A column's pixels lie between these two.
        corner0 = _corner(at, i, j, row_stride, column_stride, k, class_stride, K, EACH)
        corner1 = _corner(at, i, right, row_stride, column_stride, k, class_stride, K, EACH)
        upper = _mixed(left_weight, corner0, right_weight, corner1, EACH)
        corner0 = _corner(at, below, j, row_stride, column_stride, k, class_stride, K, EACH)
        corner1 = _corner(at, below, right, row_stride, column_stride, k, class_stride, K, EACH)
        lower = _mixed(left_weight, corner0, right_weight, corner1, EACH)
        upper_share, lower_share = nothing, nothing
        in_row = x.to(tl.int64)
        in_map = in_row * PAD + channel
        written = inside & (channel < PAD)
        for y in range(y_begin, y_end):
            upper_weight, lower_weight = _weight(y, scale_h, i), _weight(y, scale_h, i + 1)
            row = (image * H + y) * W
            logit = _mixed(upper_weight, upper, lower_weight, lower, EACH)
            highest = logit[0]
            for v in tl.static_range(1, EACH):
                highest = tl.maximum(highest, logit[v])
            highest = tl.max(highest, 1, keep_dims=True)
            total = tl.zeros([WIDTH, LANES], tl.float32)
            e, p = (), ()
            for v in tl.static_range(EACH):
                e = e + (tl.exp(logit[v] - highest),)  # noqa: RUF005
                total += e[v]
            total = tl.sum(total, 1, keep_dims=True)
            for v in tl.static_range(EACH):
                p = p + (e[v] * (1.0 / total),)  # noqa: RUF005
            if maps is not None:
                tl.store(maps + row * PAD + in_map, _joined(p, EACH).to(maps.dtype.element_ty), mask=written)
            change = p
            if labels is not None:
                label = tl.load(labels + row + in_row, mask=inside, other=0)
                counted = inside & (label != ignore)
                # A class that is not there: NaN, as nothing can be raised.
                weight = tl.where((label >= 0) & (label < K), 1.0, float("nan"))
                if weights is not None:
                    weight *= tl.load(weights + row + in_row, mask=inside, other=0).to(tl.float32)
                weight = tl.where(counted, weight, 0.0)
                # One lane has the label's class, and the first one the logarithm: they are added at the end.
                term = tl.where(lane == 0, tl.log(total), 0.0)
                change = ()
                for v in tl.static_range(EACH):
                    is_label = label == k + v
                    term -= tl.where(is_label, logit[v] - highest, 0.0)
                    change = change + (weight * tl.where(is_label, p[v] - 1.0, p[v]),)  # noqa: RUF005
                loss += tl.where(counted, weight * term, 0.0)
                count += (counted & (lane == 0)).to(tl.int32)
            if grad is not None:
                g = tl.load(grad + row * PAD + in_map, mask=written, other=0).to(tl.float32)
                # What comes back for the channels beyond K is not looked at.
                g = _split(tl.where(channel < K, g, 0.0), EACH)
                product = tl.zeros([WIDTH, LANES], tl.float32)
                for v in tl.static_range(EACH):
                    product += p[v] * g[v]
                product = tl.sum(product, 1, keep_dims=True)
                change = ()
                for v in tl.static_range(EACH):
                    change = change + (p[v] * (g[v] - product),)  # noqa: RUF005
            if shares is not None:
                upper_share = _mixed(upper_weight, change, 1.0, upper_share, EACH)
                lower_share = _mixed(lower_weight, change, 1.0, lower_share, EACH)
        if shares is not None:
            share00 = _mixed(left_weight, upper_share, 1.0, share00, EACH)
            share01 = _mixed(right_weight, upper_share, 1.0, share01, EACH)
            share10 = _mixed(left_weight, lower_share, 1.0, share10, EACH)
            share11 = _mixed(right_weight, lower_share, 1.0, share11, EACH)

    if labels is not None:
        tl.store(losses + cell, tl.sum(loss))
        tl.store(counts + cell, tl.sum(count))
    if shares is not None:
        to = shares + (cell.to(tl.int64) * (4 * PAD) + channel)
        tl.store(to, tl.sum(_joined(share00, EACH), 0, keep_dims=True), mask=channel < PAD)
        tl.store(to + PAD, tl.sum(_joined(share01, EACH), 0, keep_dims=True), mask=channel < PAD)
        tl.store(to + 2 * PAD, tl.sum(_joined(share10, EACH), 0, keep_dims=True), mask=channel < PAD)
        tl.store(to + 3 * PAD, tl.sum(_joined(share11, EACH), 0, keep_dims=True), mask=channel < PAD)


@triton.jit(do_not_specialize=["cells"])
def upsampled_loss_kernel(
    losses,  # in   float32 [cells]
    counts,  # in   int32 [cells]
    loss,  # out  float32 []: their sum, by the count
    count,  # out  float32 []: at least 1
    cells,
    LENGTH: tl.constexpr,
):
    total = tl.zeros([LENGTH], tl.float32)
    number = tl.zeros([LENGTH], tl.int64)
    for first in range(0, cells, LENGTH):
        cell = first + tl.arange(0, LENGTH)
        total += tl.load(losses + cell, mask=cell < cells, other=0)
        number += tl.load(counts + cell, mask=cell < cells, other=0)
    number = tl.maximum(tl.sum(number, 0), 1).to(tl.float32)
    tl.store(loss, tl.sum(total, 0) / number)
    tl.store(count, number)


@triton.jit(do_not_specialize=["K", "h", "w", "points"])
def upsampled_gather_kernel(
    shares,  # in   float32 [cells, 4, PAD]
    grad,  # in   float32 [], of the loss, or None: 1
    count,  # in   float32 [], with grad
    gradient,  # out  [B, K, h, w], any strides
    image_stride,
    class_stride,
    row_stride,
    column_stride,
    K,
    h,
    w,
    points,  # B * h * w
    PAD: tl.constexpr,
    CLASSES: tl.constexpr,
    POINTS: tl.constexpr,
):
    point = tl.program_id(0) * POINTS + tl.arange(0, POINTS)[:, None]
    k = tl.arange(0, CLASSES)[None, :]
    columns, rows = tl.maximum(w - 1, 1), tl.maximum(h - 1, 1)
    j, i, image = point % w, point // w % h, point // w // h
    total = tl.zeros([POINTS, CLASSES], tl.float32)
    for corner in tl.static_range(4):
        row, column = i - corner // 2, j - corner % 2  # of the cell whose corner this is
        there = (point < points) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        cell = (image * rows + row) * columns + column
        at = shares + (cell.to(tl.int64) * (4 * PAD) + (corner * PAD + k))
        total += tl.load(at, mask=there & (k < K), other=0)
    if grad is not None:
        total *= tl.load(grad) / tl.load(count)
    to = gradient + (image.to(tl.int64) * image_stride + i.to(tl.int64) * row_stride + j.to(tl.int64) * column_stride)
    to += k.to(tl.int64) * class_stride
    tl.store(to, total.to(gradient.dtype.element_ty), mask=(point < points) & (k < K))
