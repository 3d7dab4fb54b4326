"""The Triton kernel of conv1x1_statistics. What launches it: conv1x1_statistics_triton.py.

A 1x1 convolution of channels-last maps is one matrix product: pixels [M, K] by weights [N, K]. A program has a tile of
ROWS pixels by COLUMNS channels in registers, all of K in one fixed order, and thus every value of a channel in its
chunk of pixels: the statistics cost no read of memory, and no other program is waited for.

The programs of one chunk of pixels follow one another: what the first reads of the pixels, the others find in the
second-level cache, where the weights, 4 MB at most in a ResNet, stay anyway. The pixels are read from memory once.

The tile lies across, channels by pixels: the tensor cores leave a channel's pixels in four threads of one warp, whose
sums take two exchanges and no barrier; the other way round they would be spread over eight threads of every warp.

Rows beyond the last are the last one's once more, of pixels as of weights: a load without a mask can be an asynchronous
copy of 16 bytes. What comes of them is not stored and not counted.

K and N alone are specialised: whether 16 divides them decides how wide loads and stores are.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M"])
def conv1x1_statistics_kernel(
    pixels,  # in   [M, K]
    weights,  # in   [N, K], of one dtype
    out,  # out  [M, N], of that dtype too
    partials,  # out  float32 [2, P, N]: mean and sum of squared distances to it, of each chunk of ROWS pixels
    M,
    K,
    N,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,  # of K in one iteration
    EVEN: tl.constexpr,  # K is a multiple of DEPTH
    PRECISION: tl.constexpr,  # of float32 products: "tf32" or "ieee"
):
    tiles = tl.cdiv(N, COLUMNS)
    chunk, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = chunk * ROWS + tl.arange(0, ROWS)[None, :]
    column = tile * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    depth = tl.arange(0, DEPTH)
    pixels_at = pixels + tl.minimum(row, M - 1).to(tl.int64) * K + depth[:, None]
    weights_at = weights + tl.minimum(column, N - 1).to(tl.int64) * K + depth[None, :]
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    for k in range(0, K, DEPTH):
        if EVEN:
            w, x = tl.load(weights_at), tl.load(pixels_at)
        else:
            w = tl.load(weights_at, mask=(depth < K - k)[None, :], other=0)
            x = tl.load(pixels_at, mask=(depth < K - k)[:, None], other=0)
        sums = tl.dot(w, x, sums, input_precision=PRECISION)
        weights_at += DEPTH
        pixels_at += DEPTH

    values = sums.to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * N + column, values, mask=(row < M) & (column < N))

    # Of what was written, not of what it was rounded from: batch norm normalises what it reads. The distances are to
    # the mean, in a second pass over registers: squares less the square of the mean would cancel.
    count = tl.minimum(M - chunk * ROWS, ROWS)
    values = values.to(tl.float32)
    mean = tl.sum(tl.where(row < M, values, 0.0), 1, keep_dims=True) / count
    distances = tl.where(row < M, values - mean, 0.0)
    at = partials + chunk.to(tl.int64) * N + column
    tl.store(at, mean, mask=column < N)
    m2 = tl.sum(distances * distances, 1, keep_dims=True)
    tl.store(at + tl.cdiv(M, ROWS).to(tl.int64) * N, m2, mask=column < N)
