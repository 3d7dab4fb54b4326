"""Stuff and instance matching: the paper's Eq. 4-8, Eq. 11 and Algorithm 1 as one module with two calls."""

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simfast import ops as fused
from simfast import reference
from simfast.matching.bank import RingBank
from simfast.ops import library
from simfast.ops.nearest import nearest_l1_ragged

log = logging.getLogger("simfast")
Classify = Callable[[Tensor], Tensor]
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Regions(NamedTuple):
    """The regions of a batch of label maps that are matched, S slots for each image."""

    segments: Tensor
    """int32 [B, h, w], the slot of each pixel, -1 = none."""
    areas: Tensor
    """int32 [B, S], pixels in each slot, 0 = none."""


class StuffInstanceMatching(nn.Module):
    """Remembers region features of source images, and pulls those of target images towards the nearest remembered one.

    The memory is held in buffers: it is saved, restored and moved with the module, and with the class ids that it is
    of; `load_state_dict` of other or reordered ones raises a ValueError. On the fused ops neither call reads
    anything back to the host, and no shape depends on a value. Put into any trainer as

        matching.remember(source_features, correct_labels(source_logits, source_labels))
        stuff_loss, instance_loss = matching(target_features, predicted_labels(target_logits))

    Args:
        num_features: C, channels of the feature map.
        stuff: class ids matched as a whole (B of Eq. 5).
        things: class ids matched region by region (K of Eq. 7).
        stuff_rows: w, remembered vectors of each stuff class; a thing class remembers w * z.
        max_instances: z, the most regions of a thing class in one image, largest first.
        gate: which pooled vectors the head must assign to their own class to count. "none" (paper), or "released":
            source stuff, source instances and target stuff, but not target instances (released code).
        fill_rule: when a class takes part in matching: "any" (paper), from its first remembered vector on, or "full"
            (released code), only after more vectors than it has slots.
        ops: "fused" (the native ops, which must have been built), "reference" (pure PyTorch), or "auto": fused where
            they are built, else the reference, which is said once. The attribute of that name says which it became.
        bank_dtype: what is remembered in; see `RingBank` for what bfloat16 does.
        gather: where several processes train together, what makes them remember the same: (means [B, S, C], ring of
            each [B, S], -1 = none) of this process -> of all, with more images. None: only this process's.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """

    def __init__(
        self,
        num_features: int,
        stuff: list[int],
        things: list[int],
        stuff_rows: int = 50,
        max_instances: int = 10,
        gate: Literal["none", "released"] = "none",
        fill_rule: Literal["any", "full"] = "any",
        ops: Literal["auto", "reference", "fused"] = "auto",
        bank_dtype: torch.dtype = torch.float32,
        gather: Gather | None = None,
    ):
        super().__init__()
        for name, value, allowed in (("gate", gate, ("none", "released")), ("fill_rule", fill_rule, ("any", "full"))):
            if value not in allowed:
                raise ValueError(f"StuffInstanceMatching: {name} must be one of {allowed}, got {value!r}")
        if min(num_features, stuff_rows, max_instances) < 1:
            raise ValueError(
                "StuffInstanceMatching: num_features, stuff_rows and max_instances must be at least 1, "
                f"got {num_features}, {stuff_rows}, {max_instances}"
            )
        self.num_features, self.max_instances = num_features, max_instances
        self.stuff, self.things = list(stuff), list(things)
        if len(set(self.stuff + self.things)) != len(self.stuff) + len(self.things):
            raise ValueError(
                f"StuffInstanceMatching: stuff and things must be distinct class ids, got {stuff}, {things}"
            )
        self.gate, self.fill_rule, self.gather = gate, fill_rule, gather
        self.ops = _resolve(ops)
        # The rings of the stuff classes, then those of the things: one bank, hence one write and one search a domain.
        rows = [stuff_rows] * len(self.stuff) + [stuff_rows * max_instances] * len(self.things)
        self.bank = RingBank(rows, num_features, bank_dtype, fused=self.ops == "fused")
        # Per slot of find_regions: its ring, and its class id.
        slots = [1] * len(self.stuff) + [max_instances] * len(self.things)
        ring = [k for k, count in enumerate(slots) for _ in range(count)]
        class_id = [(self.stuff + self.things)[k] for k in ring]
        self.register_buffer("slot_ring", torch.tensor(ring, dtype=torch.int64), persistent=False)
        self.register_buffer("slot_class", torch.tensor(class_id, dtype=torch.int64), persistent=False)

    def get_extra_state(self) -> dict[str, list[int]]:
        """Class ids, as a part of the state: a ring's place does not tell whose it is."""
        return {"stuff": self.stuff, "things": self.things}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        """Nothing is to be set: ids that are not this module's are refused before anything is loaded."""

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        """Refuses rings that are other classes'. A state from before it said whose they are is taken as it is."""
        stored = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        for name, own in self.get_extra_state().items():
            if (came := stored.get(name) if isinstance(stored, dict) else stored) != own:
                raise ValueError(
                    f"StuffInstanceMatching: {prefix}{name} of a state to load must be this module's {own}, "
                    f"in this order, got {came}"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def remember(self, features: Tensor, labels: Tensor | Regions, classify: Classify | None = None) -> None:
        """Store the region features of source images (Eq. 5, Eq. 7, Algorithm 1), image by image.

        Args:
            features: [B, C, h, w], the source feature map.
            labels: integer [B, h, w], L_C of Eq. 4; see `correct_labels`. Or the regions that `find` found in it.
            classify: the head on pooled vectors, [N, C] -> logits [N, classes]; needed with gate="released".
        """
        means, regions = self._pool(features, labels)
        rings = self._rings(means, regions.areas, len(self.slot_ring), classify)
        if self.gather is not None:
            means, rings = self.gather(means, rings)
        self.bank.write(means.flatten(0, 1), rings.flatten())

    def forward(
        self, features: Tensor, labels: Tensor | Regions, classify: Classify | None = None
    ) -> tuple[Tensor, Tensor]:
        """The stuff loss (Eq. 6) and the instance loss (Eq. 8) of target images.

        Each distance is the L1 norm divided by C. Both losses are sums over classes and means over images; a class that
        is absent, or of which nothing is remembered, contributes nothing. Gradient flows to features only.

        Args:
            features: [B, C, h, w], the target feature map.
            labels: integer [B, h, w], L_P; see `predicted_labels`. Or the regions that `find` found in it.
            classify: as for `remember`.

        Returns:
            (stuff loss, instance loss), float32 scalars.
        """
        means, regions = self._pool(features, labels)
        rings = self._rings(means, regions.areas, len(self.stuff), classify)
        distances, rows = self._nearest(means, rings)
        return self._ops.matching_losses(distances, rows, rings, len(self.stuff), self.max_instances, self.num_features)

    def find(self, labels: Tensor) -> Regions:
        """The regions that are matched: slots of class `slot_class` and ring `slot_ring`. They depend on the labels
        alone, so that they can be found beside other work.

        Args:
            labels: integer [B, h, w], L_C or L_P.
        """
        return Regions(*self._ops.find_regions(labels, self.stuff, self.things, self.max_instances))

    def pool(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the matching sees of a feature map: a slot of S for each region, see `find`.

        Args:
            features: [B, C, h, w].
            labels: integer [B, h, w], L_C or L_P.

        Returns:
            means: float32 [B, S, C], the mean feature of each slot.
            held: bool [B, S], which slots hold a region.
            segments: int32 [B, h, w], the slot of each pixel, -1 = none.
        """
        means, regions = self._pool(features, labels)
        return means, regions.areas > 0, regions.segments

    def accepted(self, means: Tensor, classify: Classify | None, class_ids: Tensor) -> Tensor:
        """Whether the head assigns each vector [B, s, C] to its slot's class, bool [B, s] (released code)."""
        return self._logits(means, classify).argmax(1).view(means.shape[:2]) == class_ids

    @property
    def _ops(self) -> ModuleType:
        return fused if self.ops == "fused" else reference

    def _pool(self, features: Tensor, labels: Tensor | Regions) -> tuple[Tensor, Regions]:
        """Mean features float32 [B, S, C], and of which regions."""
        if features.ndim != 4 or features.shape[1] != self.num_features:
            raise ValueError(
                f"StuffInstanceMatching: features must be [B, {self.num_features}, h, w], got {list(features.shape)}"
            )
        regions = labels if isinstance(labels, Regions) else self.find(labels)
        return self._ops.segment_mean(features, regions.segments, regions.areas.shape[1]), regions

    def _logits(self, means: Tensor, classify: Classify | None) -> Tensor:
        """What the head says of vectors [B, s, C]: [B * s, classes]."""
        if classify is None:
            raise ValueError('StuffInstanceMatching: classify must be given with gate="released", got None')
        with torch.no_grad():
            return classify(means.detach().flatten(0, 1))

    def _rings(self, means: Tensor, areas: Tensor, gated: int, classify: Classify | None) -> Tensor:
        """The ring of each slot, int64 [B, S], -1 = none; the gate is for the first `gated` slots."""
        if self.gate == "none" or gated == 0:
            return self._ops.select_rings(areas, self.slot_ring)
        logits = self._logits(means[:, :gated], classify)
        return self._ops.select_rings(areas, self.slot_ring, logits, self.slot_class)

    def _nearest(self, means: Tensor, rings: Tensor) -> tuple[Tensor, Tensor]:
        """L1 distance of each vector [B, S, C] from the nearest of its ring, and which row that is. [B, S] each."""
        filled = self.bank.filled(only_full=self.fill_rule == "full")
        if self.ops == "fused":
            found = nearest_l1_ragged(
                means.flatten(0, 1),
                rings.flatten(),
                self.bank.storage,
                self.bank.starts,
                filled,
                max(self.bank.num_rows, default=0),
            )
            return found[0].view(rings.shape), found[1].view(rings.shape)
        return self._nearest_by_reference(means, rings, filled)

    def _nearest_by_reference(self, means: Tensor, rings: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """The reference op takes rings of one length: first the stuff, then the things. [B, S] each."""
        split, found = len(self.stuff), []
        for slots, first, last in ((slice(split), 0, split), (slice(split, None), split, len(filled))):
            queries, ring = means[:, slots], rings[:, slots]
            ring = torch.where(ring >= 0, ring - first, -1)
            results = reference.nearest_l1(
                queries.flatten(0, 1), ring.flatten(), self.bank.rows(first, last), filled[first:last]
            )
            found.append([x.view(ring.shape) for x in results])
        return torch.cat([found[0][0], found[1][0]], 1), torch.cat([found[0][1], found[1][1]], 1)


def correct_labels(logits: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """L_C of Eq. 4: the arg-max where it equals the ground truth, else `ignore`.

    Args:
        logits: [B, K, h, w], at feature resolution.
        labels: integer [B, H, W], ground truth of any size; brought to (h, w) by nearest neighbour.

    Returns:
        int64 [B, h, w].

    Raises:
        ValueError: not one label map for each image.
    """
    _check_maps("correct_labels", "labels", labels, logits)
    predicted = logits.argmax(1)
    return predicted.masked_fill(predicted != _shrunk(labels, predicted.shape[1:]), ignore)


def predicted_labels(logits: Tensor, pseudo_labels: Tensor | None = None, ignore: int = 255) -> Tensor:
    """L_P: the arg-max of the logits, replaced by the pseudo label where there is one (Eq. 11).

    Args:
        logits: [B, K, h, w], at feature resolution.
        pseudo_labels: integer [B, H, W] of any size, `ignore` where there is none.

    Returns:
        int64 [B, h, w].

    Raises:
        ValueError: not one label map for each image.
    """
    predicted = logits.argmax(1)
    if pseudo_labels is None:
        return predicted
    _check_maps("predicted_labels", "pseudo_labels", pseudo_labels, logits)
    # int64: compared with a number that it cannot hold, a uint8 tensor takes that number modulo 256.
    pseudo_labels = shrink_labels(pseudo_labels, predicted.shape[1:])
    return torch.where(pseudo_labels == ignore, predicted, pseudo_labels)


def _check_maps(function: str, name: str, labels: Tensor, logits: Tensor) -> None:
    """One map for each image: a single one would be broadcast over all of them."""
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"{function}: {name} must be [{len(logits)}, H, W], one for each image, got {list(labels.shape)}"
        )


def shrink_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [B, H, W] at another size, by nearest neighbour. int64."""
    return _shrunk(labels, size).long()


def _shrunk(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """`shrink_labels` in uint8 where they come so: what compares with them needs no copy in int64."""
    if labels.dtype == torch.uint8:  # the one integer dtype that torch resizes
        return F.interpolate(labels[:, None], size, mode="nearest")[:, 0]
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def _resolve(ops: str) -> str:
    """The ops to use: what was asked for, or an error; never something else in silence."""
    if ops not in ("auto", "reference", "fused"):
        raise ValueError(f"StuffInstanceMatching: ops must be 'auto', 'reference' or 'fused', got {ops!r}")
    if ops == "fused" and not fused.available():
        raise ValueError(f'StuffInstanceMatching: ops must be one that is built, got "fused": {library.error}')
    if ops != "auto":
        return ops
    if fused.available():
        return "fused"
    _say_once(f"StuffInstanceMatching: ops 'auto' uses the reference in PyTorch, which is slower: {library.error}")
    return "reference"


@cache
def _say_once(what: str) -> None:
    log.warning(what)
