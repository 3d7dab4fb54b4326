"""What matching finds in a batch, and how far that is from what is remembered, class by class.

Letters: B images of a batch, S slots of an image, N regions, T rows of all rings, C features, K rings (one a class).
"""

from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simfast.config.classes import IGNORE
from simfast.matching import StuffInstanceMatching
from simfast.matching.bank import RingBank
from simfast.matching.matching import Classify, shrink_labels
from simfast.training.step import Terms


class Regions(NamedTuple):
    """The regions of a batch as matching sees them, image by image, in the order of its slots."""

    images: Tensor
    """int64 [N], the image of each."""
    rings: Tensor
    """int64 [N], its ring: stuff classes, then things."""
    vectors: Tensor
    """float32 [N, C], its mean feature."""
    zeros: Tensor
    """float32 [N], the share of zeros among the feature values of its pixels."""
    accepted: Tensor
    """bool [N], whether the head assigns the vector to the region's class (the released code's gate)."""
    majority: Tensor
    """int64 [N], the class that most of its labelled pixels truly have, lowest on ties; -1 where that is unknown."""


@torch.no_grad()
def describe_regions(
    matching: StuffInstanceMatching, features: Tensor, labels: Tensor, classify: Classify, truth: Tensor | None = None
) -> Regions:
    """The regions of a batch.

    Args:
        matching: says which they are.
        features: [B, C, h, w].
        labels: integer [B, h, w], L_C or L_P.
        classify: the head on pooled vectors.
        truth: integer [B, H, W] of any size, true labels; `IGNORE` where there is none.
    """
    means, present, segments = matching.pool(features, labels)
    slots = present.shape[1]
    zeros = matching.pool((features == 0).float(), labels)[0].mean(2)
    accepted = matching.accepted(means, classify, matching.slot_class)
    majority = torch.full(present.shape, -1, dtype=torch.int64, device=features.device)
    if truth is not None:
        truth = shrink_labels(truth, segments.shape[1:])
        image = torch.arange(len(segments), device=segments.device)[:, None, None]
        cell = (image * slots + segments) * IGNORE + truth  # every class is below that
        counted = (segments >= 0) & (truth != IGNORE)
        counts = torch.bincount(cell[counted], minlength=present.numel() * IGNORE).view(*present.shape, IGNORE)
        majority = torch.where(counts.any(2), counts.argmax(2), -1)
    images, places = present.nonzero(as_tuple=True)
    at = (images, places)
    return Regions(images, matching.slot_ring[places], means[at], zeros[at], accepted[at], majority[at])


def nearest_rows(vectors: Tensor, rings: Tensor, bank: RingBank) -> tuple[Tensor, Tensor]:
    """Distances (L1 / C) to the nearest remembered row of a vector's own ring, and to that of any other ring.

    Args:
        vectors: [N, C].
        rings: int64 [N].
        bank: of which every row written counts, whatever the fill rule.

    Returns:
        Two float32 [N], +inf where there is no such row.
    """
    rows, ring = _remembered(bank)
    distances = F.pad(torch.cdist(vectors.float(), rows, p=1) / bank.num_features, (0, 1), value=torch.inf)
    own = F.pad(ring, (0, 1), value=-1) == rings[:, None]
    return distances.where(own, torch.inf).amin(1), distances.where(~own, torch.inf).amin(1)


def bank_spacing(bank: RingBank) -> tuple[Tensor, Tensor]:
    """Each remembered row's distance (L1 / C) from the nearest other row of its ring, and its ring.

    Returns:
        float32 [T], +inf where its ring has no other; int64 [T].
    """
    rows, ring = _remembered(bank)
    spacing = torch.full(ring.shape, torch.inf, device=rows.device)
    for k in ring.unique().tolist():
        distances = torch.cdist(rows[ring == k], rows[ring == k], p=1) / bank.num_features
        spacing[ring == k] = distances.fill_diagonal_(torch.inf).amin(1)
    return spacing, ring


def _remembered(bank: RingBank) -> tuple[Tensor, Tensor]:
    """The rows written, float32 [T, C], and the ring of each, int64 [T]."""
    ring = bank.rings.repeat_interleave(bank.sizes)
    valid = torch.arange(len(ring), device=ring.device) - bank.starts[ring] < bank.filled()[ring]
    return bank.storage[:-1][valid].float(), ring[valid]


class RegionTally:
    """Sums by class over the regions of many batches.

    Args:
        matching: with the banks to measure distances from.
    """

    def __init__(self, matching: StuffInstanceMatching):
        self.matching, self.class_ids = matching, [*matching.stuff, *matching.things]
        self.images = {"source": 0, "target": 0}
        self._zeros = partial(torch.zeros, len(self.class_ids), dtype=torch.float64)
        self._sums, self._counts = defaultdict(self._zeros), defaultdict(self._zeros)
        spacing, rings = bank_spacing(matching.bank)
        self._add("spacing", rings, spacing, spacing.isfinite())

    def add(self, domain: str, terms: Terms, classify: Classify, truth: Tensor | None = None) -> None:
        """The regions of a batch of "source" or "target"; truth as for `describe_regions`."""
        regions = describe_regions(self.matching, terms.features.detach(), terms.labels, classify, truth)
        self.images[domain] += len(terms.features)
        self._add(f"{domain} accepted", regions.rings, regions.accepted)
        in_image = torch.stack([regions.images, regions.rings]).unique(dim=1)
        self._add(f"{domain} image", in_image[1], torch.ones_like(in_image[1]))
        if domain == "source":
            return
        own, other = nearest_rows(regions.vectors, regions.rings, self.matching.bank)
        self._add("own", regions.rings, own, own.isfinite())
        self._add("other", regions.rings, other, other.isfinite())
        self._add("own nearest", regions.rings, own <= other, own.isfinite())
        self._add("feature", regions.rings, regions.vectors.abs().mean(1))
        self._add("zeros", regions.rings, regions.zeros)
        class_of = torch.tensor(self.class_ids, device=regions.rings.device)[regions.rings]
        pure, judged = regions.majority == class_of, regions.majority >= 0
        self._add("pure", regions.rings, pure, judged)
        self._add("pure accepted", regions.rings, pure, judged & regions.accepted)
        self._add("pure nearest", regions.rings, pure, judged & own.isfinite() & (own <= other))

    def seen(self, ring: int) -> bool:
        """Whether anything of a class has been met, in the banks or in an image."""
        met = sum(self._counts[f"{domain} accepted"][ring] for domain in self.images)
        return bool(met) or bool(self.matching.bank.written[ring])

    def row(self, rings: list[int]) -> dict[str, Any]:
        """Counts and means over the regions of some classes; None where there is nothing to take the mean of.

        bank: rows written, valid and capacity, how many of the classes take part under fill rule "any" and "full", and
            the mean distance of a row from the nearest other one of its ring.
        source, target: regions and regions accepted by the head's gate per image (at most z of a thing class in one),
            and the share of (image, class) with one.
        target: also purity, the share of regions whose class is what most of their pixels truly are: of all that have
            labelled pixels (judged), of those that the gate accepts, of those whose nearest row is of their own class.
        distance: of a target region from the nearest row of its own class and of any other, the share of regions of
            which the own one is nearest, mean absolute feature of regions, share of zero features in their pixels.
        """
        bank = self.matching.bank
        filled, full = bank.filled(), bank.filled(only_full=True)
        found: dict[str, Any] = {
            "bank": {
                "written": int(bank.written[rings].sum()),
                "valid": int(filled[rings].sum()),
                "capacity": int(bank.sizes[rings].sum()),
                "any": int((filled[rings] > 0).sum()),
                "full": int((full[rings] > 0).sum()),
                "spacing": self._mean("spacing", rings),
            }
        }
        for domain, images in self.images.items():
            name = f"{domain} accepted"
            found[domain] = {
                "regions": float(self._counts[name][rings].sum()) / images,
                "accepted": float(self._sums[name][rings].sum()) / images,
                "images": float(self._counts[f"{domain} image"][rings].sum()) / (images * max(1, len(rings))),
            }
        found["target"]["judged"] = int(self._counts["pure"][rings].sum())
        purity = {"all": "pure", "accepted": "pure accepted", "own_nearest": "pure nearest"}
        found["target"]["purity"] = {key: self._mean(name, rings) for key, name in purity.items()}
        names = {"own": "own", "other": "other", "own_nearest": "own nearest", "feature": "feature", "zeros": "zeros"}
        return found | {"distance": {key: self._mean(name, rings) for key, name in names.items()}}

    def _mean(self, name: str, rings: list[int]) -> float | None:
        count = float(self._counts[name][rings].sum())
        return float(self._sums[name][rings].sum()) / count if count else None

    def _add(self, name: str, rings: Tensor, values: Tensor, valid: Tensor | None = None) -> None:
        rings, values = (x if valid is None else x[valid] for x in (rings, values))
        rings, values = rings.cpu(), values.double().cpu()
        self._sums[name].index_add_(0, rings, values)
        self._counts[name].index_add_(0, rings, torch.ones_like(values))
