"""Class-wise ring buffers of source features: what target regions are matched against (Eq. 5, Algorithm 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simfast import ops, reference


class RingBank(nn.Module):
    """One ring of rows of D features for each class, all in one flat buffer that is saved and moved with the module.

    A vector goes to the next slot of its class's ring (Algorithm 1's counter c_k; the oldest row is overwritten once
    the ring is full). Eq. 5 writes the stuff slot as j = i mod w with the image number i; that leaves holes where a
    class is absent, so stuff classes count their own vectors as thing classes do, and as the released code does.

    Fused, a write uses fixed shapes and reads no value back to the host.

    Args:
        num_rows: rows of each ring, at least 1; the rings may be of different length.
        num_features: D.
        dtype: what rows are stored in. bfloat16 halves the memory and the time to read it. It moves a value by at most
            1/256 of itself, hence a distance by at most 1/256 of the row's L1 norm: another row becomes the nearest
            only where two lie as close together as that.
        fused: write by the native op, in one launch, or by its reference in PyTorch.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """

    def __init__(
        self, num_rows: Sequence[int], num_features: int, dtype: torch.dtype = torch.float32, fused: bool = False
    ):
        super().__init__()
        self.num_rows, self.num_features, self.fused = list(num_rows), num_features, fused
        if min(self.num_rows, default=1) < 1 or num_features < 0:
            raise ValueError(
                "RingBank: num_rows must each be at least 1 and num_features at least 0, "
                f"got {self.num_rows}, {num_features}"
            )
        if not dtype.is_floating_point:
            raise ValueError(f"RingBank: dtype must be a floating one, got {dtype}")
        # One row more than the rings have, for ever 0: checkpoints have it.
        self.register_buffer("storage", torch.zeros(sum(self.num_rows) + 1, num_features, dtype=dtype))
        self.register_buffer("written", torch.zeros(len(self.num_rows), dtype=torch.int64))
        sizes = torch.tensor(self.num_rows, dtype=torch.int64)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("rings", torch.arange(len(self.num_rows)), persistent=False)

    def rows(self, first: int, last: int) -> Tensor:
        """The rings first..last-1, which must be equally long, as [last - first, R, D]: a view of the storage.

        The leading min(written, R) rows of a ring are valid.
        """
        size = self.num_rows[first] if last > first else 1
        start = sum(self.num_rows[:first])
        return self.storage[start : start + (last - first) * size].view(last - first, size, self.num_features)

    def write(self, vectors: Tensor, classes: Tensor) -> None:
        """Store vectors in the order given.

        Args:
            vectors: [N, D]; stored detached, rounded to the storage's dtype.
            classes: int64 [N], the ring of each vector; -1 = do not store.
        """
        write = ops.ring_write if self.fused else reference.ring_write
        write(self.storage, self.written, vectors, classes, self.starts, self.sizes)

    def filled(self, only_full: bool = False) -> Tensor:
        """How many leading rows of each ring take part in matching, int64 [K].

        Args:
            only_full: a class takes part only after more writes than it has slots (released code).
        """
        if only_full:
            return torch.where(self.written > self.sizes, self.sizes, 0)
        return torch.minimum(self.written, self.sizes)
