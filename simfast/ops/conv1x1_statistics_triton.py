"""The CUDA half of conv1x1_statistics: what launches its Triton kernel. Contract: conv1x1_statistics.py."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from simfast.ops.conv1x1_statistics_kernels import conv1x1_statistics_kernel

# Fewer programs than these leave multiprocessors of a large GPU idle.
ENOUGH = 100


@dataclass(frozen=True)
class Tile:
    """What one program computes, `columns` channels of a chunk of pixels, and how: `depth` values of K an iteration,
    of which `stages` are under way to shared memory."""

    columns: int
    depth: int
    stages: int
    warps: int


def tile_of(
    pixels: int, depth: int, channels: int, rows: int, dtype: torch.dtype, capability: tuple[int, int], tf32: bool
) -> Tile:
    """The tile by rule, not by timing: equal calls have equal bits.

    Args:
        pixels, depth, channels: M, K and N of the product.
        rows: pixels of a chunk.
        capability: of the device.
    """
    if dtype == torch.float32 and not tf32:
        return Tile(64, 32, 2, 8)
    # The tensor cores of capabilities 9 and 10 read what a line of the cache holds of each row from shared memory;
    # others pass it through registers, as do loads that are not aligned.
    from_shared = capability[0] in (9, 10) and depth % 16 == 0
    columns, chunks = 64, triton.cdiv(pixels, rows)
    # Two programs of 128 channels fit a multiprocessor, where one's beginning and end pass behind the other's products;
    # one of 256 reads a quarter less from the second-level cache, which counts where the product is deep.
    half = dtype.itemsize == 2
    for wider in (128, 256) if capability[0] == 9 and half and depth >= 1024 else (128,):
        if channels > wider // 2 and chunks * triton.cdiv(channels, wider) >= ENOUGH and depth % 16 == 0:
            columns = wider
    # What a thread holds at the end, and addresses to write it to, must fit its registers.
    warps = 8 if columns == 256 or (columns == 128 and (capability[0] == 10 or not half)) else 4
    return Tile(columns, (128 if from_shared else 64) // dtype.itemsize, 4 if columns == 256 else 3, warps)


def forward(x: Tensor, weight: Tensor, rows: int, tf32: bool, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """simfast::conv1x1_statistics on CUDA, in one launch. Copies what is not channels-last."""
    images, depth, height, width = x.shape
    channels, pixels = len(weight), images * height * width
    if max(pixels + rows, triton.cdiv(pixels, rows) * (channels + 255) // 64) >= 2**31:
        raise ValueError(f"conv1x1_statistics: pixels must be less than 2^31, got {pixels}")
    out = x.new_empty((images, height, width, channels))
    partials = x.new_empty((2, triton.cdiv(pixels, rows), channels), dtype=torch.float32)
    x, weight = x.permute(0, 2, 3, 1).contiguous(), weight.flatten(1).contiguous()
    if tile is None:
        capability = torch.cuda.get_device_capability(x.device)
        tile = tile_of(pixels, depth, channels, rows, x.dtype, capability, tf32)
    with torch.cuda.device_of(x):
        conv1x1_statistics_kernel[(triton.cdiv(pixels, rows) * triton.cdiv(channels, tile.columns),)](
            x,
            weight,
            out,
            partials,
            pixels,
            depth,
            channels,
            ROWS=rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            EVEN=depth % tile.depth == 0,
            PRECISION="tf32" if tf32 else "ieee",
            num_stages=tile.stages,
            num_warps=tile.warps,
        )
    return out.permute(0, 3, 1, 2), partials
