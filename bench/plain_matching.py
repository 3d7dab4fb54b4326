"""Matching as a plain training loop writes it, in the manner of the released code: what StuffInstanceMatching replaces.

One mask per class and region. A thing class's mask goes to the host, where scikit-image labels it; every region comes
back as a mask, which is multiplied with the whole map and averaged over it. The head judges vectors one by one, and its
answer is read back. Each target vector is broadcast against its class's bank. Counters are Python's.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class PlainMatching:
    """Same losses and memory as StuffInstanceMatching(gate="released", fill_rule="full").

    Args:
        stuff, things: class ids.
        max_instances: the most regions of a thing class in one image.
        bank: per class its ring, [R, C]; written in place.
        written: per class how many vectors its ring has got.
        classify: the head on pooled vectors, [N, C] -> logits [N, classes].
    """

    def __init__(
        self,
        stuff: list[int],
        things: list[int],
        max_instances: int,
        bank: dict[int, Tensor],
        written: dict[int, int],
        classify: Callable[[Tensor], Tensor],
    ):
        self.stuff, self.things, self.max_instances = stuff, things, max_instances
        self.bank, self.written, self.classify = bank, written, classify

    @torch.no_grad()
    def remember(self, features: Tensor, labels: Tensor) -> None:
        for feature, label in zip(features, labels, strict=True):
            for c in self.stuff + self.things:
                for mask in self._masks(label, c):
                    vector = average(feature, mask)
                    if self._accepts(vector, c):
                        self.bank[c][self.written[c] % len(self.bank[c])] = vector
                        self.written[c] += 1

    def __call__(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(stuff loss, instance loss)."""
        stuff_loss = instance_loss = torch.zeros((), device=features.device)
        for feature, label in zip(features, labels, strict=True):
            for c in self.stuff:
                for mask in self._masks(label, c):
                    vector = average(feature, mask)
                    if self._accepts(vector.detach(), c) and self._takes_part(c):
                        stuff_loss = stuff_loss + self._distance(vector, c)
            for c in self.things:
                masks = list(self._masks(label, c))
                if self._takes_part(c):
                    for mask in masks:
                        instance_loss = instance_loss + self._distance(average(feature, mask), c) / len(masks)
        return stuff_loss / len(features), instance_loss / len(features)

    def _masks(self, label: Tensor, c: int) -> Iterator[Tensor]:
        """The masks of a class's regions, [h, w] on the labels' device."""
        mask = label == c
        if c in self.stuff:
            if mask.any().item():
                yield mask
            return
        from skimage.measure import label as sk_label  # here: what a plain loop is compared with needs no scikit-image

        ids = sk_label(mask.to("cpu", copy=True).numpy(), connectivity=2)
        areas = np.bincount(ids.ravel())[1:]
        for i in np.argsort(-areas, kind="stable")[: self.max_instances]:
            yield torch.from_numpy(ids == i + 1).to(label.device)

    def _accepts(self, vector: Tensor, c: int) -> bool:
        return self.classify(vector[None]).argmax().item() == c

    def _takes_part(self, c: int) -> bool:
        return self.written[c] > len(self.bank[c])

    def _distance(self, vector: Tensor, c: int) -> Tensor:
        return (vector - self.bank[c]).abs().mean(1).min()


def average(feature: Tensor, mask: Tensor) -> Tensor:
    """Mean of a map [C, h, w] over a mask [h, w], as a product with the mask and a global average. float32 [C]."""
    mask = mask.to(feature.dtype)
    return F.adaptive_avg_pool2d(feature * mask, 1).flatten().float() / mask.float().mean()
