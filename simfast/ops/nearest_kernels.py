"""The Triton kernels of nearest_l1. What launches them: nearest_triton.py. Contract: nearest.py.

Where the time goes, at 118 queries against 11 banks of 500 and 8 of 50 rows, D 2048: every row is needed by up to 10
queries, a subtraction and an addition for each of 0.11 G pairs of values, which takes about as long as reading 23 MB of
bfloat16 rows from memory. So a program holds a tile of rows in registers, read once, and takes the queries of its class
to it one by one. Nothing is padded to a number of queries, and nothing but the rows comes from memory: the queries stay
in the second-level cache, and the warps of a program, with eight rows each, share what they fetch in the first.

Programs take tiles from a list that each makes for itself from how many rows are filled and which classes are asked
for: a class with few queries or rows costs in proportion, an absent one nothing. Queries may come in any order; those
of a class are found as bits of a mask, 32 queries at a time, without a list or a sort.

D is cut into chunks because a tile of full width does not fit the registers. Each program writes its share of the
distances, and a second kernel adds the shares, takes the minimum and notes the signs for the gradient: the same bits in
every run, without atomics.

The JIT makes an integer argument that happens to be 1 a constant, and compiles anew where one becomes a multiple of 16.
That is wanted for the strides alone, whose alignment decides how wide the loads are.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(2**63 - 1)  # a key above all others


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _class_rows(starts, filled, k, num_bank_rows, max_rows, mask):
    """First bank row of class k, and how many are valid: no value in `starts` or `filled` leads outside the bank."""
    start = k * max_rows if starts is None else tl.load(starts + k, mask=mask, other=0)
    count = tl.minimum(tl.load(filled + k, mask=mask, other=0), max_rows)
    count = tl.maximum(tl.minimum(count, num_bank_rows - start), 0)
    return start, tl.where(start < 0, 0, count).to(tl.int32)


@triton.jit
def _load(at, column, num_columns, rows_mask, ROWS_MASKED: tl.constexpr, EVEN: tl.constexpr, CACHE: tl.constexpr):
    """A tile as float32; columns outside are 0. Unmasked where possible: what a mask guards is loaded once for every
    row that shares it."""
    if not EVEN:
        tile = tl.load(at, mask=rows_mask & (column < num_columns), other=0, cache_modifier=CACHE)
    elif ROWS_MASKED:
        tile = tl.load(at, mask=rows_mask, cache_modifier=CACHE)
    else:
        tile = tl.load(at, cache_modifier=CACHE)
    return tile.to(tl.float32)


@triton.jit
def _compare_tile(
    queries,
    query_stride,
    classes,
    bank,  # the class's first row
    bank_stride,
    shares,
    share_stride,
    N,
    R,
    D,
    chunks,
    k,
    row0,
    count,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Rows row0.. of class k, one chunk of their columns, against the queries of that class."""
    chunk = tl.program_id(0)
    row = (row0 + tl.arange(0, ROWS))[:, None]
    filled_row = row < count
    # Two dimensions, and a width that LANES threads span: the warps then lie along the rows, a row's sum stays within
    # one warp, and bank and query tiles have one layout: the loop below moves nothing through shared memory.
    column = (chunk * (STEPS * WIDTH) + tl.arange(0, WIDTH))[None, :]
    bank_at = bank + row.to(tl.int64) * bank_stride + column
    b = ()
    for step in tl.static_range(STEPS):
        offset = step * WIDTH
        # Past the first-level cache, which is the queries'.
        b = b + (_load(bank_at + offset, column + offset, D, filled_row, True, EVEN, ".cg"),)  # noqa: RUF005
    # The first of the LANES that have a row's sum writes it. Spread over LANES columns, and with a stride of which the
    # compiler knows nothing, the store takes the layout that the sums have; as a vector of rows it would take another,
    # and two barriers a query.
    lane = tl.arange(0, LANES)[None, :]
    written = (lane == 0) & filled_row
    out = shares + chunk.to(tl.int64) * R + (row.to(tl.int64) * share_stride + lane)
    out_stride = chunks.to(tl.int64) * R
    query_columns = queries + tl.broadcast_to(column, (ROWS, WIDTH))
    bit = tl.arange(0, 32)
    for base in range(0, N, 32):
        of = tl.load(classes + base + bit, mask=base + bit < N, other=-1)
        mine = tl.sum(tl.where(of == k, 1 << bit, 0), 0)
        while mine != 0:
            lowest = mine & -mine
            mine ^= lowest
            # The number of the bit is the exponent of its value as a float.
            exponent = lowest.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23
            n = base + (exponent - 127)
            query_at = query_columns + n.to(tl.int64) * query_stride
            share = tl.abs(_load(query_at, column, D, filled_row, False, EVEN, "") - b[0])
            for step in tl.static_range(1, STEPS):
                offset = step * WIDTH
                q = _load(query_at + offset, column + offset, D, filled_row, False, EVEN, "")
                share += tl.abs(q - b[step])
            share = tl.broadcast_to(tl.sum(share, 1, keep_dims=True), (ROWS, LANES))
            tl.store(out + n * out_stride, share, mask=written)


@triton.jit(do_not_specialize=["share_stride", "N", "K", "T", "R", "D", "chunks"])
def nearest_l1_compare_kernel(
    queries,  # in   [N, D], rows query_stride apart
    query_stride,
    classes,  # in   int64 [N]
    bank,  # in   [T, D], rows bank_stride apart
    bank_stride,
    starts,  # in   int64 [K], or None: k * R
    filled,  # in   int64 [K]
    shares,  # out  float32 [N, chunks, R]: of each query's distance to each filled row of its class
    share_stride,  #   of its last dimension: 1
    N,
    K,
    T,
    R,
    D,
    chunks,
    CLASSES: tl.constexpr,  # a power of two, at least K
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,  # a chunk is STEPS * WIDTH columns
    LANES: tl.constexpr,
    EVEN: tl.constexpr,  # D is a multiple of a chunk
):
    # Which classes any query has, as bits; those from 31 on share one.
    asked = tl.full([QUERIES], 0, tl.int32)
    for base in range(0, N, QUERIES):
        query = base + tl.arange(0, QUERIES)
        of = tl.load(classes + query, mask=query < N, other=-1)
        asked |= tl.where(of >= 0, 1 << tl.minimum(of, 31).to(tl.int32), 0)
    asked = tl.reduce(asked, 0, _either)
    every = tl.arange(0, CLASSES)
    _, counts = _class_rows(starts, filled, every.to(tl.int64), T, R, every < K)
    wanted = (every < K) & ((asked >> tl.minimum(every, 31)) & 1 != 0)
    tiles = tl.where(wanted, (counts + (ROWS - 1)) // ROWS, 0)
    through = tl.cumsum(tiles, 0)
    total = tl.sum(tiles, 0)
    # From the last tile to the first: classes of many regions, whose tiles take long, are put last by those who have
    # both kinds, and the short ones then fill the gaps at the end.
    for item in range(tl.program_id(1), total, tl.num_programs(1)):
        tile = total - 1 - item
        before = through <= tile
        k = tl.sum(before.to(tl.int32), 0)
        row0 = (tile - tl.sum(tl.where(before, tiles, 0), 0)) * ROWS
        count = tl.sum(tl.where(every == k, counts, 0), 0)
        start = k.to(tl.int64) * R if starts is None else tl.load(starts + k)
        _compare_tile(
            queries,
            query_stride,
            classes,
            bank + start * bank_stride,
            bank_stride,
            shares,
            share_stride,
            N,
            R,
            D,
            chunks,
            k,
            row0,
            count,
            ROWS,
            WIDTH,
            STEPS,
            LANES,
            EVEN,
        )


@triton.jit(do_not_specialize=["K", "T", "R", "chunks"])
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
