"""The ops of matching in pure PyTorch; see `simfast.reference`.

Letters: B images, C channels, H W map, S segments, N queries, K classes, R rows a class, D width.
"""

import torch
from torch import Tensor

from simfast.reference.checks import came, check_connectivity, check_map


def connected_components(labels: Tensor, connectivity: int = 8, background: int = 255) -> tuple[Tensor, Tensor]:
    """Component ids in raster order of each component's first pixel, and how many components each image has.

    Two neighbouring pixels belong together where they carry the same label and that label is not `background`.

    Args:
        labels: integer [B, H, W] (uint8, int16, int32 or int64), any strides.
        connectivity: 8 (also diagonal neighbours) or 4.
        background: label that belongs to no component; a value that the dtype cannot hold means "no background".

    Returns:
        ids: int32 [B, H, W], 0 on background, else 1..counts[b]. Equal value for value to
            `skimage.measure.label(x, background=background, connectivity=2)` (`connectivity=1` for 4 neighbours).
        counts: int32 [B].

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.

    Source: the operation T of Eq. 7, for all classes of a map at once.
    """
    check_map("connected_components", "labels", labels)
    check_connectivity("connected_components", connectivity)
    images, height, width = labels.shape
    values = labels.long()  # a Python int outside the dtype's range would otherwise wrap in the comparison
    foreground = values != background
    index = torch.arange(values.numel(), device=values.device).view(values.shape)

    first, second = [], []
    steps = [(0, 1), (1, 0)] if connectivity == 4 else [(0, 1), (1, 0), (1, 1), (1, -1)]
    for down, right in steps:
        here = (slice(None), slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(None), slice(down, height), slice(max(0, right), width + min(0, right)))
        joined = (values[here] == values[there]) & foreground[here]
        first.append(index[here][joined])
        second.append(index[there][joined])
    first, second = torch.cat(first), torch.cat(second)

    # Union by minimum: every root with a smaller neighbouring root hooks onto the smallest, then paths are flattened.
    parent = index.flatten()
    while first.numel():
        first, second = parent[first], parent[second]
        apart = first != second
        first, second = first[apart], second[apart]
        parent = parent.scatter_reduce(0, torch.maximum(first, second), torch.minimum(first, second), "amin")
        while not torch.equal(parent[parent], parent):
            parent = parent[parent]

    # A root is its component's smallest index, which is its first pixel in raster order.
    is_root = ((parent.view(values.shape) == index) & foreground).view(images, -1)
    rank = is_root.cumsum(1)
    ids = rank.flatten()[parent].view(values.shape)
    return torch.where(foreground, ids, 0).int(), rank[:, -1].int()


def find_regions(
    labels: Tensor, stuff: list[int], things: list[int], max_instances: int = 10, connectivity: int = 8
) -> tuple[Tensor, Tensor]:
    """The regions that SIM matches, in fixed slots: whole stuff classes, and the largest regions of thing classes.

    S = len(stuff) + len(things) * max_instances. Slot i < len(stuff) holds all pixels of class stuff[i], connected or
    not. Then each thing class has max_instances slots with its largest connected components, largest first, ties by the
    raster order of their first pixel. Pixels of smaller components, and of classes in neither list, have no slot.

    Args:
        labels: integer [B, H, W], any strides.
        stuff, things: distinct class ids; no id in both.
        max_instances: z of Algorithm 1, at least 1.
        connectivity: 8 or 4.

    Returns:
        segments: int32 [B, H, W], the slot of each pixel, -1 where none.
        areas: int32 [B, S], pixels in each slot, 0 for an empty one.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.

    Source: Eq. 5 (which pixels), Eq. 7 and Algorithm 1 (regions, order, at most z).
    """
    check_map("find_regions", "labels", labels)
    check_connectivity("find_regions", connectivity)
    stuff, things = list(stuff), list(things)
    if len(set(stuff + things)) != len(stuff) + len(things):
        raise ValueError(f"find_regions: stuff and things must hold distinct class ids, got {stuff} and {things}")
    if max_instances < 1:
        raise ValueError(f"find_regions: max_instances must be at least 1, got {max_instances}")
    images, height, width = labels.shape
    pixels = height * width
    num_stuff, num_things = len(stuff), len(things)
    num_slots = num_stuff + num_things * max_instances
    device = labels.device

    values = labels.long().reshape(images, pixels)
    segments = torch.full((images, pixels), -1, device=device)
    for slot, class_id in enumerate(stuff):
        segments[values == class_id] = slot
    thing = torch.full((images, pixels), num_things, device=device)  # index into things; num_things = none of them
    for i, class_id in enumerate(things):
        thing[values == class_id] = i

    ids, _ = connected_components(thing.view(images, height, width), connectivity, background=num_things)
    ids = ids.long().view(images, pixels)
    # A region is (image, id); `key` numbers them so that regions of one image stay in raster order.
    key = torch.arange(images, device=device)[:, None] * (pixels + 1) + ids
    region, inverse, area = torch.unique(key, return_inverse=True, return_counts=True)
    region_thing = torch.full_like(region, num_things).scatter_(0, inverse.flatten(), thing.flatten())
    group = torch.where(
        region_thing < num_things, region // (pixels + 1) * num_things + region_thing, images * num_things
    )
    # By group, then by area downwards; the stable sort leaves ties in raster order.
    order = torch.sort(group * (pixels + 1) + (pixels - area), stable=True).indices
    sorted_group = group[order]
    rank = torch.arange(len(order), device=device) - torch.searchsorted(sorted_group, sorted_group)
    slot = num_stuff + sorted_group % max(num_things, 1) * max_instances + rank
    kept = (rank < max_instances) & (sorted_group < images * num_things)
    region_slot = torch.empty_like(region).scatter_(0, order, torch.where(kept, slot, -1))
    segments = torch.where(thing < num_things, region_slot[inverse], segments)

    index = torch.where(
        segments >= 0, segments + torch.arange(images, device=device)[:, None] * num_slots, images * num_slots
    )
    return segments.view(images, height, width).int(), _count(index, images * num_slots).view(images, num_slots).int()


def segment_mean(features: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Mean feature of every segment of every image; 0 for an empty segment. Differentiable in features.

    Args:
        features: [B, C, H, W], float32, float16 or bfloat16 (float64 for gradient checks), contiguous or channels-last.
        segments: integer [B, H, W] in [-1, num_segments); a pixel with any other value belongs to no segment.
        num_segments: S, at least 0.

    Returns:
        means: float32 [B, S, C], summed in float64 (float64 for float64 features).

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.

    Source: the operation A of Eq. 5 and I of Eq. 7.
    """
    check_map("segment_mean", "segments", segments)
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(f"segment_mean: features must be floating [B, C, H, W], {came(features)}")
    if features.shape[0] != segments.shape[0] or features.shape[2:] != segments.shape[1:]:
        raise ValueError(
            f"segment_mean: segments must be [B, H, W] of features {list(features.shape)}, got {list(segments.shape)}"
        )
    if num_segments < 0:
        raise ValueError(f"segment_mean: num_segments must be at least 0, got {num_segments}")
    images, channels = features.shape[:2]
    flat = features.double().permute(0, 2, 3, 1).reshape(-1, channels)
    segments = segments.long()
    offset = torch.arange(images, device=segments.device)[:, None, None] * num_segments
    valid = (segments >= 0) & (segments < num_segments)
    index = torch.where(valid, segments + offset, images * num_segments).flatten()
    sums = flat.new_zeros(images * num_segments + 1, channels).index_add(0, index, flat)[:-1]
    # With one float32 after another the mean of a large segment would be wrong by parts in a hundred. The quotient is
    # float32, so that its gradient is too.
    sums = sums.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    means = sums / _count(index, images * num_segments).clamp(min=1)[:, None].to(sums.dtype)
    return means.view(images, num_segments, channels)


def nearest_l1(queries: Tensor, classes: Tensor, bank: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance from each query to the nearest filled row of its class's bank, and which row that is.

    Where there is nothing to compare with (class -1 or any other without a bank, or a class without filled rows):
    distance +inf, row -1, zero gradient.
    Gradient flows to queries only: sign(query - row), with sign(0) = 0.

    Args:
        queries: [N, D], floating.
        classes: integer [N], which class's rows each query is compared with; -1 = skip.
        bank: [K, R, D], floating.
        filled: integer [K], how many leading rows of each class are valid, 0..R.

    Returns:
        distances: float32 [N], a sum over D, not a mean (float64 for float64 queries).
        rows: int64 [N], the lowest row on ties.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.

    Source: min_j || . - S_j ||_1 of Eq. 6 and Eq. 8.
    """
    for name, x, ndim in (("queries", queries, 2), ("bank", bank, 3)):
        if x.ndim != ndim or not x.is_floating_point():
            raise ValueError(f"nearest_l1: {name} must be floating with {ndim} dimensions, {came(x)}")
    for name, x, like, length in (("classes", classes, "queries", len(queries)), ("filled", filled, "bank", len(bank))):
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or x.shape != (length,):
            raise ValueError(f"nearest_l1: {name} must be integer [{length}] as {like} has it, {came(x)}")
    if queries.shape[1] != bank.shape[2]:
        raise ValueError(f"nearest_l1: queries and bank must have the same width D, {came(queries)} and {came(bank)}")
    accumulate = torch.float64 if queries.dtype == torch.float64 else torch.float32
    queries, bank = queries.to(accumulate), bank.detach().to(accumulate)
    rows = torch.full((len(queries),), -1, dtype=torch.int64, device=queries.device)
    with torch.no_grad():
        for k, num_rows in enumerate(filled.clamp(0, bank.shape[1]).tolist()):
            mine = (classes == k).nonzero().flatten()
            if num_rows and len(mine):
                # arg-min promises the first of equal minima
                rows[mine] = torch.cdist(queries[mine], bank[k, :num_rows], p=1).argmin(1)
    found = rows >= 0
    nearest = (
        bank[classes.long().clamp(0, len(bank) - 1), rows.clamp(min=0)] if bank.numel() else torch.zeros_like(queries)
    )
    distances = (queries - nearest).abs().sum(1)
    return torch.where(found, distances, torch.inf), rows


def ring_write(
    storage: Tensor, written: Tensor, vectors: Tensor, classes: Tensor, starts: Tensor, sizes: Tensor
) -> None:
    """Append vectors to rings, in the order given: `storage` and `written` are changed in place.

    Ring k owns the rows starts[k] .. starts[k] + sizes[k] - 1. Its vector number i, counted from 0 over all calls, goes
    to its row i modulo sizes[k]; of more vectors in one call than it has rows only the last stay. No other row is
    touched.

    Args:
        storage: floating [T, D], contiguous.
        written: int64 [K], contiguous: how many vectors each ring has been given, these included afterwards.
        vectors: floating [N, D]; rounded to the storage's dtype, not differentiable.
        classes: int64 [N], the ring of each vector; it is not stored where that is -1, or no ring.
        starts, sizes: int64 [K]; no row belongs to two rings, sizes at least 1.

    Raises:
        ValueError: naming the argument, the rule and what came.

    Source: Algorithm 1's counter c_k; Eq. 5.
    """
    if storage.ndim != 2 or vectors.ndim != 2 or storage.shape[1] != vectors.shape[1]:
        raise ValueError(f"ring_write: vectors must be [N, D] for a storage [T, D], {came(vectors)}, {came(storage)}")
    with torch.no_grad():
        is_class = classes[:, None] == torch.arange(len(sizes), device=classes.device)
        number = written + is_class.cumsum(0)  # as which of its ring each vector comes, from 1 on; [N, K]
        total = written + is_class.sum(0)
        # Leaving out what would be overwritten keeps every destination unique.
        n, k = (is_class & (number > total - sizes)).nonzero(as_tuple=True)
        rows = starts[k] + (number[n, k] - 1) % sizes[k]
        storage.index_copy_(0, rows, vectors[n].to(storage.dtype))
        written.copy_(total)


def select_rings(
    areas: Tensor, slot_rings: Tensor, logits: Tensor | None = None, slot_classes: Tensor | None = None
) -> Tensor:
    """The ring of each slot that holds a region; -1 where it holds none, or the head gives it another class.

    Args:
        areas: int32 [B, S], of `find_regions`.
        slot_rings: int64 [S].
        logits: floating [B * G, L], G at most S: what the head says of the first G slots of each image. They count
            where its arg-max, the first of the largest, is the slot's class. None: all count.
        slot_classes: int64 [S], with logits.

    Returns:
        int64 [B, S].

    Raises:
        ValueError: naming the argument, the rule and what came.

    Source: "regions with area > 0" of Algorithm 1; the released code's gate.
    """
    counts = areas > 0
    if logits is not None:
        if slot_classes is None:
            raise ValueError("select_rings: slot_classes must be given with logits, got None")
        gated = len(logits) // max(len(areas), 1)
        accepted = logits.argmax(1).view(len(areas), gated) == slot_classes[:gated]
        counts = torch.cat([counts[:, :gated] & accepted, counts[:, gated:]], 1)
    return torch.where(counts, slot_rings, -1)


def matching_losses(
    distances: Tensor, rows: Tensor, rings: Tensor, num_stuff: int, max_instances: int, num_features: int
) -> tuple[Tensor, Tensor]:
    """The stuff loss and the instance loss of the distances in `find_regions`' slots. Differentiable in distances.

    Each is the sum over classes and the mean over images of a class's mean distance over its regions, divided by
    num_features. A region without a row near it has distance 0.

    Args:
        distances: floating [B, S], of `nearest_l1`.
        rows: int64 [B, S], of `nearest_l1`: negative where nothing was near.
        rings: int64 [B, S], of `select_rings`: negative where there is no region.
        num_stuff: how many of the slots are stuff classes'.
        max_instances: slots of each thing class.
        num_features: C.

    Returns:
        (stuff loss, instance loss), scalars of the distances' dtype.

    Raises:
        ValueError: naming the argument, the rule and what came.

    Source: Eq. 6 and Eq. 8.
    """
    images, num_slots = rows.shape
    if (num_slots - num_stuff) % max_instances:
        raise ValueError(
            f"matching_losses: rows must have {num_stuff} slots and a multiple of {max_instances}, {came(rows)}"
        )
    terms = torch.where(rows >= 0, distances, 0) / (num_features * images)
    stuff, instances = terms.split([num_stuff, num_slots - num_stuff], 1)
    by_class = (images, (num_slots - num_stuff) // max_instances, max_instances)
    regions = (rings[:, num_stuff:] >= 0).reshape(by_class).sum(2).clamp(min=1)
    return stuff.sum(), (instances.reshape(by_class).sum(2) / regions).sum()


def _count(index: Tensor, size: int) -> Tensor:
    """How often 0..size-1 occur in index; larger values are left out. int64 [size]."""
    index = index.flatten()
    counts = torch.zeros(size + 1, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:-1]
