"""Class-wise ring buffers of source features: what target regions are matched against (Eq. 5, Algorithm 1)."""

import torch
from torch import Tensor, nn


class RingBank(nn.Module):
    """K rings of R rows of D features, one ring a class, in buffers that are saved and moved with the module.

    A vector goes to the next slot of its class's ring (Algorithm 1's counter c_k; the oldest row is overwritten once
    the ring is full). Eq. 5 writes the stuff slot as j = i mod w with the image number i; that leaves holes where a
    class is absent, so stuff classes count their own vectors as thing classes do, and as the released code does.

    Writing and reading use fixed shapes and never read a value back to the host.
    """

    def __init__(self, num_classes: int, num_rows: int, num_features: int):
        super().__init__()
        if min(num_classes, num_features) < 0 or num_rows < 1:
            raise ValueError(
                "RingBank: num_rows must be at least 1 and num_classes, num_features at least 0, "
                f"got {num_rows}, {num_classes}, {num_features}"
            )
        self.num_classes, self.num_rows = num_classes, num_rows
        # The last row takes what is not to be stored, so that a write has the same shape whatever is in the batch.
        self.register_buffer("storage", torch.zeros(num_classes * num_rows + 1, num_features))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def rows(self) -> Tensor:
        """float32 [K, R, D]; the first min(written, R) rows of a class are valid."""
        return self.storage[:-1].view(self.num_classes, self.num_rows, -1)

    @torch.no_grad()
    def write(self, vectors: Tensor, classes: Tensor) -> None:
        """Store vectors in the order given.

        Args:
            vectors: [N, D]; stored detached, as float32.
            classes: int64 [N], the ring of each vector; -1 = do not store.
        """
        is_class = classes[:, None] == torch.arange(self.num_classes, device=classes.device)
        count = is_class.sum(0)
        ring = classes.clamp(min=0)
        order = (is_class.cumsum(0) - 1).gather(1, ring[:, None]).squeeze(1)
        # Of more vectors than slots only the last R stay; leaving out the others keeps every destination unique.
        stored = (classes >= 0) & (order >= count[ring] - self.num_rows)
        slot = ring * self.num_rows + (self.written[ring] + order) % self.num_rows
        slot = torch.where(stored, slot, self.num_classes * self.num_rows)
        vectors = torch.where(stored[:, None], vectors.detach().to(self.storage.dtype), 0)
        self.storage.index_copy_(0, slot, vectors)
        self.written += count

    def filled(self, only_full: bool = False) -> Tensor:
        """How many leading rows of each class take part in matching, int64 [K].

        Args:
            only_full: a class takes part only after more writes than it has slots (released code).
        """
        if only_full:
            return torch.where(self.written > self.num_rows, self.num_rows, 0)
        return self.written.clamp(max=self.num_rows)
