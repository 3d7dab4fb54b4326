"""What the reference ops check of their arguments, and how they say what came."""

import torch
from torch import Tensor


def check_map(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"{op}: {name} must be uint8, int16, int32 or int64 [B, H, W], {came(x)}")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"{op}: {name} must be a non-empty integer [B, H, W], {came(x)}")


def check_connectivity(op: str, connectivity: int) -> None:
    if connectivity not in (4, 8):
        raise ValueError(f"{op}: connectivity must be 4 or 8, got {connectivity}")


def came(x: Tensor) -> str:
    return f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
