"""find_regions: the regions that the matching pools, in fixed slots."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import check_connectivity, check_map

MAX_CLASSES = 64  # kMaxClasses of csrc/kernels.h: the class ids travel inside the kernel's arguments. More take turns.


def find_regions(
    labels: Tensor, stuff: list[int], things: list[int], max_instances: int = 10, connectivity: int = 8
) -> tuple[Tensor, Tensor]:
    """The regions that SIM matches, in fixed slots: whole stuff classes, and the largest regions of thing classes.

    S = len(stuff) + len(things) * max_instances. Slot i < len(stuff) holds all pixels of class stuff[i], connected or
    not. Then each thing class has max_instances slots with its largest connected components, largest first, ties by the
    raster order of their first pixel. Pixels of smaller components, and of classes in neither list, have no slot.
    The labels are read in place, whatever their strides and dtype. Not differentiable.

    Args:
        labels: integer [B, H, W] (uint8, int16, int32 or int64), any strides, H * W < 2^31.
        stuff, things: distinct class ids; no id in both. Every further 64 of them are a search of their own.
        max_instances: z of Algorithm 1, at least 1.
        connectivity: 8 or 4.

    Returns:
        segments: int32 [B, H, W], the slot of each pixel, -1 where none.
        areas: int32 [B, S], pixels in each slot, 0 for an empty one.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit.

    Source: Eq. 5 (which pixels), Eq. 7 and Algorithm 1 (regions, order, at most z).
    """
    check_map("find_regions", "labels", labels)
    check_connectivity("find_regions", connectivity)
    _check_classes(stuff, things)
    if max_instances < 1:
        raise ValueError(f"find_regions: max_instances must be at least 1, got {max_instances}")
    if len(stuff) + len(things) * max_instances >= 2**31:
        raise ValueError(f"find_regions: max_instances must leave less than 2^31 slots, got {max_instances}")
    library.require("find_regions", labels.device)
    find = torch.ops.simfast.find_regions.default
    if len(stuff) + len(things) <= MAX_CLASSES:
        return find(labels, stuff, things, max_instances, connectivity)
    # Regions of different classes share no pixel, and the slots of classes that follow one another do so too.
    segments, areas, num_slots = None, [], 0
    for first in range(0, len(stuff) + len(things), MAX_CLASSES):
        last = first + MAX_CLASSES
        some = list(stuff[first:last]), list(things[max(0, first - len(stuff)) : max(0, last - len(stuff))])
        found, of_some = find(labels, *some, max_instances, connectivity)
        segments = found if segments is None else torch.where(found >= 0, found + num_slots, segments)
        areas.append(of_some)
        num_slots += of_some.shape[1]
    return segments, torch.cat(areas, 1)


def _check_classes(stuff: Sequence[int], things: Sequence[int]) -> None:
    classes = (*stuff, *things)
    if len(set(classes)) != len(classes):
        raise ValueError(
            f"find_regions: stuff and things must hold distinct class ids, got {list(stuff)} and {list(things)}"
        )


if library.available():

    @torch.library.register_fake("simfast::find_regions")
    def _(
        labels: Tensor, stuff: Sequence[int], things: Sequence[int], max_instances: int, connectivity: int
    ) -> tuple[Tensor, Tensor]:
        num_slots = len(stuff) + len(things) * max_instances
        return (
            labels.new_empty(labels.shape, dtype=torch.int32),
            labels.new_empty((labels.shape[0], num_slots), dtype=torch.int32),
        )
