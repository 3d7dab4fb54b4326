"""Inputs and comparisons that tests/ and bench/ share: label maps with hard shapes, odd layouts, an error budget."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

IGNORE = 255
STUFF = [0, 1, 2, 3, 4, 8, 9, 10]  # Cityscapes train ids, as the matching uses them
THINGS = [5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18]

# The marks of a test that needs a GPU: `-m gpu` selects it, and it is skipped where there is none.
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def needs_gpu(test):
    """Decorator: puts the marks of GPU on a test."""
    for mark in GPU:
        test = mark(test)
    return test


# ----------------------------------------------------------------------------------------------------------------------
# Label maps
# ----------------------------------------------------------------------------------------------------------------------


def smooth_labels(
    images: int, height: int, width: int, num_classes: int = 19, scale: int = 32, ignore: float = 0.0, seed: int = 0
) -> Tensor:
    """Maps like a segmentation's arg-max: blobs of about `scale` pixels. uint8 [B, H, W].

    `ignore` is the share of pixels, in blobs too, that carry 255.
    """
    g = torch.Generator().manual_seed(seed)
    grid = (images, num_classes + 1, height // scale + 2, width // scale + 2)
    labels = torch.empty(images, height, width, dtype=torch.uint8)
    for b, coarse in enumerate(torch.randn(grid, generator=g)):
        fields = F.interpolate(coarse[None], size=(height, width), mode="bicubic", align_corners=True)[0]
        labels[b] = fields[:-1].argmax(0)
        if ignore > 0:
            labels[b][fields[-1] >= fields[-1].flatten().quantile(1 - ignore)] = IGNORE
    return labels


def noise_labels(
    images: int, height: int, width: int, num_classes: int = 19, ignore: float = 0.0, seed: int = 0
) -> Tensor:
    """Independent pixels, the worst case for labelling. uint8 [B, H, W]; a share of `ignore` carries 255."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (images, height, width), generator=g, dtype=torch.uint8)
    if ignore > 0:
        labels[torch.rand(labels.shape, generator=g) < ignore] = IGNORE
    return labels


def spiral(height: int, width: int) -> np.ndarray:
    """A one-pixel arm wound inwards with one pixel between its turns: the longest path a map can hold. uint8 [H, W]."""
    x = np.zeros((height, width), np.uint8)
    row, col, down, right = 0, 0, 0, 1
    x[0, 0] = 1
    turns = 0
    while turns < 2:
        far_row, far_col = row + 2 * down, col + 2 * right
        inside = 0 <= row + down < height and 0 <= col + right < width
        clear = not (0 <= far_row < height and 0 <= far_col < width) or x[far_row, far_col] == 0
        if inside and clear and x[row + down, col + right] == 0:
            row, col, turns = row + down, col + right, 0
            x[row, col] = 1
        else:
            down, right = right, -down
            turns += 1
    return x


def comb(height: int, width: int) -> np.ndarray:
    """Teeth that only the last row joins: every id but the first is decided at the very end. uint8 [H, W]."""
    x = np.zeros((height, width), np.uint8)
    x[:, ::2] = 1
    x[-1] = 1
    return x


def checkerboard(height: int, width: int) -> np.ndarray:
    """Two classes that touch themselves only diagonally. uint8 [H, W]."""
    return (np.indices((height, width)).sum(0) % 2).astype(np.uint8)


def zigzag(height: int, width: int) -> np.ndarray:
    """Diagonals that run left and right through every word and strip border. uint8 [H, W]."""
    y, x = np.indices((height, width))
    return (np.abs((x + y) % 14 - 7) % 3).astype(np.uint8)


HARD_MAPS = {
    "spiral": spiral(67, 131),
    "spiral of background": np.where(spiral(41, 70), IGNORE, 0).astype(np.uint8),
    "comb": comb(17, 131),
    "comb on its side": np.ascontiguousarray(comb(33, 65).T),
    "comb upside down": np.ascontiguousarray(comb(33, 65)[::-1]),
    "checkerboard": checkerboard(64, 129),
    "zigzag": zigzag(65, 200),
    "one class": np.full((65, 127), 3, np.uint8),
    "only background": np.full((9, 13), IGNORE, np.uint8),
    "one pixel": np.zeros((1, 1), np.uint8),
    "one pixel of background": np.full((1, 1), IGNORE, np.uint8),
    "one row": np.array([[0, 0, 3, 255, 3, 3, 0]], np.uint8),
    "one long row": noise_labels(1, 1, 1000, 2, 0.2)[0].numpy(),
    "one column": np.array([[0, 0, 3, 255, 3, 3, 0]], np.uint8).T.copy(),
    "one long column": noise_labels(1, 1000, 1, 2, 0.2)[0].numpy(),
    "two columns": noise_labels(1, 129, 2, 2, 0.1)[0].numpy(),
    "noise of 2 classes": noise_labels(1, 63, 257, 2, 0.1)[0].numpy(),
    "noise of 19 classes": noise_labels(1, 129, 130, 19, 0.1)[0].numpy(),
    "blobs": smooth_labels(1, 91, 161, 19, 16, 0.1)[0].numpy(),
}


def _strided(x: Tensor) -> Tensor:
    big = x.new_full((x.shape[0] + 1, 2 * x.shape[1] + 1, 3 * x.shape[2] + 1), 77)
    view = big[1:, 1::2, 1::3]
    return view.copy_(x)


# Same values, other strides.
LABEL_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "sliced": _strided,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "images last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
}

# ----------------------------------------------------------------------------------------------------------------------
# Feature maps
# ----------------------------------------------------------------------------------------------------------------------


def feature_maps(
    images: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Non-negative maps with about half zeros, as a backbone's last ReLU leaves them. [B, C, H, W], contiguous."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, height, width, generator=g).relu().to(dtype)


def _all_strided(x: Tensor) -> Tensor:
    big = x.new_full((x.shape[0], x.shape[1], 2 * x.shape[2], 2 * x.shape[3]), torch.nan)
    return big[:, :, ::2, 1::2].copy_(x)


def _some_channels(x: Tensor) -> Tensor:
    big = x.new_full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), torch.nan)
    return big[:, 1:-2].copy_(x)


def _some_channels_last(x: Tensor) -> Tensor:
    big = x.new_full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), torch.nan).contiguous(
        memory_format=torch.channels_last
    )
    return big[:, 1:-2].copy_(x)


# Same values, other strides; NaN beside them, which no kernel may read into a result.
FEATURE_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some channels": _some_channels,
    "some channels, channels-last": _some_channels_last,
    "every second pixel": _all_strided,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}

# ----------------------------------------------------------------------------------------------------------------------
# Comparisons
# ----------------------------------------------------------------------------------------------------------------------


def assert_same(got: Tensor, expected: Tensor, what: str = "result") -> None:
    """Exact equality of dtype, shape and every value, for labels, ids and indices."""
    expected = torch.as_tensor(expected)
    assert got.dtype == expected.dtype, f"{what}: dtype {got.dtype}, expected {expected.dtype}"
    assert got.shape == expected.shape, f"{what}: shape {list(got.shape)}, expected {list(expected.shape)}"
    wrong = (got.cpu() != expected.cpu()).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        values = f"{got.cpu()[at].item()}, expected {expected.cpu()[at].item()}"
        raise AssertionError(f"{what}: {len(wrong)} of {got.numel()} values differ, first at {at}: {values}")


def assert_means_close(got: Tensor, exact: Tensor) -> None:
    """Relative error at most 2**-21, eight roundings of float32, however many the pixels.

    Args:
        got: means of features that are not negative, float32.
        exact: the same in float64, from the same features.
    """
    torch.testing.assert_close(got.cpu(), exact.float().cpu(), rtol=2**-21, atol=0)


def assert_within_budget(got: Tensor, exact: Tensor, honest: Tensor) -> None:
    """Error against float64 at most twice that of an honest low-precision reference, plus one rounding of the output.

    Args:
        got: what a kernel computed.
        exact: the same in float64, from the same inputs.
        honest: the same by plain PyTorch in the kernel's precision.
    """
    assert got.shape == exact.shape
    exact, honest = exact.cpu().double(), honest.cpu().double()
    error = (got.cpu().double() - exact).abs()
    allowed = 2 * (honest - exact).abs().max() + torch.finfo(got.dtype).eps * exact.abs()
    worst = (error - allowed).argmax()
    assert bool((error <= allowed).all()), (
        f"error {error.flatten()[worst]:.3g} exceeds the budget {allowed.flatten()[worst]:.3g} "
        f"at {tuple(int(i) for i in np.unravel_index(int(worst), error.shape))}"
    )


# ----------------------------------------------------------------------------------------------------------------------
# What a call does
# ----------------------------------------------------------------------------------------------------------------------

# What makes the host wait for a value or a size, on a device that computes on its own.
_HOST_READS = frozenset((
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere", "masked_select",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
))  # fmt: skip


class Calls(TorchDispatchMode):
    """Lists the operators that run inside it, backward included; works on any device.

    Attributes:
        names: every operator that computes (not those that make a view), e.g. "aten.add.Tensor".
        host_reads: those that make the host wait: reads of a value, results whose size depends on values, and copies
            from one device to another. `.cpu()` of what is on the CPU leaves no trace; `.to("cpu", copy=True)` does.
    """

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.host_reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aliases = [a.alias_info for a in func._schema.arguments]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.names.append(str(func))
        if self._reads(func.overloadpacket.__name__, args, kwargs):
            self.host_reads.append(str(func))
        return func(*args, **kwargs)

    @staticmethod
    def _reads(name: str, args: tuple, kwargs: dict) -> bool:
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in ("copy_", "_copy_from"):
            return args[0].device != args[1].device
        if name == "_to_copy":
            wanted, here = kwargs.get("device"), args[0].device
            # On one device: a cast, for which autocast names the device too, or a copy that nobody waits for.
            waits = kwargs.get("dtype") in (None, args[0].dtype) and not kwargs.get("non_blocking")
            return wanted is not None and (wanted != here or (wanted.type == "cpu" and waits))
        return name in _HOST_READS or (name == "repeat_interleave" and kwargs.get("output_size") is None)


# ----------------------------------------------------------------------------------------------------------------------
# Settings of torch
# ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """The flags that a run sets."""
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
