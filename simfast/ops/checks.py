"""What the ops check of their arguments, and how they say what came."""

import torch
from torch import Tensor

MAP_DTYPES = frozenset((torch.uint8, torch.int16, torch.int32, torch.int64))
FEATURE_DTYPES = frozenset((torch.float32, torch.float16, torch.bfloat16))


def check_tensors(op: str, **arguments: Tensor) -> None:
    """Raises unless all of them are tensors."""
    for name, x in arguments.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")


def check_map(op: str, name: str, x: Tensor) -> None:
    """Raises unless x is what every op takes for a map of labels or segments."""
    check_tensors(op, **{name: x})
    if x.dtype not in MAP_DTYPES:
        raise TypeError(f"{op}: {name} must be uint8, int16, int32 or int64 [B, H, W], {came(x)}")
    if x.ndim != 3 or x.numel() == 0:
        raise ValueError(f"{op}: {name} must be a non-empty integer [B, H, W], {came(x)}")
    if x.shape[1] * x.shape[2] >= 2**31:
        raise ValueError(f"{op}: {name} must have less than 2^31 pixels an image, {came(x)}")


def check_connectivity(op: str, connectivity: int) -> None:
    if connectivity not in (4, 8):
        raise ValueError(f"{op}: connectivity must be 4 or 8, got {connectivity}")


def came(x: Tensor) -> str:
    return f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
