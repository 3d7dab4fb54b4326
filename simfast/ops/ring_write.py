"""ring_write: vectors appended to class-wise rings, in place."""

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import FEATURE_DTYPES, came, check_tensors


def ring_write(
    storage: Tensor, written: Tensor, vectors: Tensor, classes: Tensor, starts: Tensor, sizes: Tensor
) -> None:
    """Append vectors to rings, in the order given: `storage` and `written` are changed in place, in one launch.

    Ring k owns the rows starts[k] .. starts[k] + sizes[k] - 1. Its vector number i, counted from 0 over all calls, goes
    to its row i modulo sizes[k]; of more vectors in one call than it has rows only the last stay. No other row is
    touched.
    A ring that would leave the storage, has no row, has a negative count or would count past 2^63, is left alone.

    Args:
        storage: float32, float16 or bfloat16 [T, D] (on the CPU also float64), contiguous.
        written: int64 [K], contiguous: how many vectors each ring has been given, these included afterwards.
        vectors: [N, D], of any of these dtypes; rounded to the storage's, not differentiable.
        classes: int64 [N], the ring of each vector; it is not stored where that is -1, or no ring.
        starts, sizes: int64 [K]; no row belongs to two rings, sizes at least 1.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit.

    Source: Algorithm 1's counter c_k; Eq. 5.
    """
    check_tensors("ring_write", storage=storage, written=written, vectors=vectors)
    check_tensors("ring_write", classes=classes, starts=starts, sizes=sizes)
    for name, x in (("storage", storage), ("vectors", vectors)):
        double_on_cpu = x.dtype == torch.float64 and x.device.type != "cuda"
        if x.ndim != 2 or not (x.dtype in FEATURE_DTYPES or double_on_cpu):
            raise ValueError(
                f"ring_write: {name} must be float32, float16 or bfloat16 with 2 dimensions "
                f"(float64 on the CPU), {came(x)}"
            )
    if vectors.shape[1] != storage.shape[1]:
        raise ValueError(
            f"ring_write: vectors must have the width {storage.shape[1]} of storage, got {vectors.shape[1]}"
        )
    lengths = (("written", written, len(sizes)), ("starts", starts, len(sizes)), ("sizes", sizes, len(sizes)))
    for name, x, length in (*lengths, ("classes", classes, len(vectors))):
        if x.dtype != torch.int64 or x.shape != (length,):
            raise ValueError(f"ring_write: {name} must be int64 [{length}], {came(x)}")
        if x.device != storage.device:
            raise ValueError(f"ring_write: {name} must be on the storage's device {storage.device}, got {x.device}")
    if vectors.device != storage.device:
        raise ValueError(f"ring_write: vectors must be on the storage's device {storage.device}, got {vectors.device}")
    for name, x in (("storage", storage), ("written", written)):
        if not x.is_contiguous():
            raise ValueError(f"ring_write: {name} must be contiguous, got strides {x.stride()}")
    library.require("ring_write", storage.device)
    vectors = vectors.detach()
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()  # exact
    torch.ops.simfast.ring_write.default(storage, written, vectors, classes, starts, sizes)


if library.available():

    @torch.library.register_fake("simfast::ring_write")
    def _(storage: Tensor, written: Tensor, vectors: Tensor, classes: Tensor, starts: Tensor, sizes: Tensor) -> None:
        pass
