"""Class-wise ring buffers of source features: what target regions are matched against (Eq. 5, Algorithm 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RingBank(nn.Module):
    """One ring of rows of D features for each class, all in one flat buffer that is saved and moved with the module.

    A vector goes to the next slot of its class's ring (Algorithm 1's counter c_k; the oldest row is overwritten once
    the ring is full). Eq. 5 writes the stuff slot as j = i mod w with the image number i; that leaves holes where a
    class is absent, so stuff classes count their own vectors as thing classes do, and as the released code does.

    Writing and reading use fixed shapes and never read a value back to the host.

    Args:
        num_rows: rows of each ring, at least 1; the rings may be of different length.
        num_features: D.
        dtype: what rows are stored in. bfloat16 halves the memory and the time to read it. It moves a value by at most
            1/256 of itself, hence a distance by at most 1/256 of the row's L1 norm: another row becomes the nearest
            only where two lie as close together as that.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """

    def __init__(self, num_rows: Sequence[int], num_features: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.num_rows, self.num_features = list(num_rows), num_features
        if min(self.num_rows, default=1) < 1 or num_features < 0:
            raise ValueError(
                "RingBank: num_rows must each be at least 1 and num_features at least 0, "
                f"got {self.num_rows}, {num_features}"
            )
        if not dtype.is_floating_point:
            raise ValueError(f"RingBank: dtype must be a floating one, got {dtype}")
        # The last row takes what is not to be stored, so that a write has the same shape whatever is in the batch.
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

    @torch.no_grad()
    def write(self, vectors: Tensor, classes: Tensor) -> None:
        """Store vectors in the order given.

        Args:
            vectors: [N, D]; stored detached, rounded to the storage's dtype.
            classes: int64 [N], the ring of each vector; -1 = do not store.
        """
        if not self.num_rows:
            return
        spare = len(self.storage) - 1
        is_class = classes[:, None] == self.rings
        number = self.written + is_class.cumsum(0)  # as which of its ring each vector comes, from 1 on; [N, K]
        written = self.written + is_class.sum(0)
        slot = self.starts + (number - 1) % self.sizes
        # Of more vectors than slots only the last stay; leaving out the others keeps every destination unique.
        kept = is_class & (number > written - self.sizes)
        slot = torch.where(kept, slot, spare).amin(1)
        self.storage.index_copy_(0, slot, vectors.detach().to(self.storage.dtype))
        self.storage[spare].zero_()  # which of its vectors came last is not the same in every run
        self.written.copy_(written)

    def filled(self, only_full: bool = False) -> Tensor:
        """How many leading rows of each ring take part in matching, int64 [K].

        Args:
            only_full: a class takes part only after more writes than it has slots (released code).
        """
        if only_full:
            return torch.where(self.written > self.sizes, self.sizes, 0)
        return torch.minimum(self.written, self.sizes)
