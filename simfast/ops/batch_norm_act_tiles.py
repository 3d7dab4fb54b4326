"""What the Triton kernels of batch_norm_act share, forward and backward.

A map is read as M pixels (rows) of C channels each, one after the other. All kernels are bound by memory: what counts
is how often a map is passed over, and how many bytes are on their way at a time. So a program takes a block of channels
and a stretch of rows, and every thread holds one load of 16 bytes in each of STEPS tiles at once.

Sums over a map are taken in two levels: each program leaves those of its stretch, and every program of the next kernel
adds up the few stretches of its channels before it begins, in the same order. That takes neither atomics nor a launch
of its own, and gives the same bits in every run. Within a stretch each thread has sums of its own: threads meet, at a
barrier, once at its end.
"""

# ruff: noqa: B007, RUF005  (Triton's language takes neither unused names nor unpacking)
import triton
import triton.language as tl


@triton.jit
def load_tiles(pointer, first, column, last, C, ROWS: tl.constexpr, STEPS: tl.constexpr, FULL: tl.constexpr):
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
def store(pointer, row, column, last, C, value, FULL: tl.constexpr):
    """Rounds to the map's dtype."""
    at = pointer + row.to(tl.int64) * C + column
    if FULL:
        tl.store(at, value.to(pointer.dtype.element_ty))
    else:
        tl.store(at, value.to(pointer.dtype.element_ty), mask=(row < last) & (column < C))


@triton.jit
def load_channels(pointer, column, C, EVEN: tl.constexpr):
    """A float32 value for each channel."""
    if EVEN:
        return tl.load(pointer + column).to(tl.float32)
    return tl.load(pointer + column, mask=column < C, other=0).to(tl.float32)


@triton.jit
def normalise(x, mean, scale, bias):
    """The one place where values are normalised: forward and backward must find the same signs."""
    return tl.fma(x - mean, scale, bias)


@triton.jit
def wait_for_all(semaphore, programs):
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
