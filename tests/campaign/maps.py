"""Fuzzed label, segment and feature maps through every op, against oracles that share no code with it: scikit-image,
cc3d and SciPy for regions, SciPy and NumPy in float64 for numbers, a list in Python for rings.

    python -m tests.campaign.maps SEED COUNT

A case is drawn from its seed and number alone: `check(seed, number)` runs one again.
"""

import sys
import time
from collections.abc import Callable, Iterator

import cc3d
import numpy as np
import scipy.ndimage
import skimage.measure
import torch
from scipy.spatial.distance import cdist

from simfast import ops, reference

Row = tuple[str, int, list[str]]
EPS = float(np.finfo(np.float32).eps)
SIZES = (1, 2, 3, 7, 16, 31, 63, 64, 65, 70, 130)
INTEGERS = {torch.uint8: (0, 255), torch.int16: (-(2**15), 2**15 - 1), torch.int32: (-(2**31), 2**31 - 1)}
INTEGERS[torch.int64] = (-(2**63), 2**63 - 1)
IGNORE = 255


def fuzz(seed: int, seconds: float | None = None, count: int | None = None) -> list[Row]:
    """A row for each op: (what, how many cases, what was bad, each with the seed and number that bring it back).

    Args:
        seed: of all cases.
        seconds, count: when to stop, whichever comes first; neither: after 10,000 cases.
    """
    if seconds is None and count is None:
        count = 10_000
    begun, number = time.monotonic(), 0
    tried, bad = dict.fromkeys(CHECKS, 0), {kind: [] for kind in CHECKS}
    while (count is None or number < count) and (seconds is None or time.monotonic() - begun < seconds):
        for kind, faults in check(seed, number):
            tried[kind] += 1
            bad[kind] += faults
        number += 1
    return [(f"maps: {kind}", tried[kind], bad[kind]) for kind in CHECKS]


def check(seed: int, number: int) -> Iterator[tuple[str, list[str]]]:
    """Case `number`: each op, and what was bad of it. Every eighth case runs the reference by the same oracles."""
    library = reference if number % 8 == 7 else ops
    for index, (kind, run) in enumerate(CHECKS.items()):
        where = f"maps.check({seed}, {number}), {library.__name__}.{kind}"
        try:
            yield kind, [f"{where}: {fault}" for fault in run(np.random.default_rng((seed, number, index)), library)]
        except Exception as error:
            yield kind, [f"{where}: {type(error).__name__}: {error}"]


# ----------------------------------------------------------------------------------------------------------------------
# Inputs
# ----------------------------------------------------------------------------------------------------------------------


def label_map(rng: np.random.Generator, values: np.ndarray, least: torch.dtype) -> torch.Tensor:
    """[B, H, W] of `values` in blobs, stripes or noise, in a dtype from `least` on that holds them, of any strides."""
    images, height, width = rng.integers(1, 4), *rng.choice(SIZES, 2)
    if rng.random() < 0.03:
        images, height, width = 1, rng.integers(100, 300), rng.integers(100, 300)
    scale = int(rng.choice([1, 1, 2, 5, 20]))
    coarse = rng.integers(len(values), size=(images, height // scale + 1, width // scale + 1))
    index = coarse.repeat(scale, 1).repeat(scale, 2)[:, :height, :width]
    if rng.random() < 0.2:
        index = np.broadcast_to(index[:, :1] if rng.random() < 0.5 else index[:, :, :1], index.shape)
    noise = rng.random(index.shape) < rng.choice([0, 0.02, 0.3])
    labels = values[np.where(noise, rng.integers(len(values), size=index.shape), index)]
    dtypes = [*INTEGERS][[*INTEGERS].index(least) :]
    fits = [t for t in dtypes if INTEGERS[t][0] <= labels.min() and labels.max() <= INTEGERS[t][1]]
    return strided(rng, torch.from_numpy(labels).to(fits[rng.integers(len(fits))]))


def strided(rng: np.random.Generator, x: torch.Tensor) -> torch.Tensor:
    """The same values, in memory some other way."""
    kind = rng.integers(5)
    if kind == 0:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if kind == 1:
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if kind == 2:
        return torch.cat([x, x])[len(x) :]
    if kind == 3 and len(x) > 1 and torch.equal(x[:1].expand_as(x), x):
        return x[:1].expand_as(x)
    return x


def numbers(rng: np.random.Generator, *shape: int) -> tuple[torch.Tensor, bool]:
    """Floats in any dtype, and whether they are small whole numbers, of which every sum is exact."""
    whole = bool(rng.random() < 0.5)
    x = rng.integers(-4, 5, shape) if whole else rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)
    dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[rng.integers(4)]
    return torch.from_numpy(np.asarray(x, np.float64)).to(dtype), whole


def exact(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def off(what: str, got: np.ndarray, expected: np.ndarray, within: np.ndarray | float = 0.0) -> list[str]:
    """One line if `got` is further from `expected` than `within`; NaN is never near."""
    if got.shape != expected.shape:
        return [f"{what} of shape {list(got.shape)}, not {list(expected.shape)}"]
    same = got == expected
    with np.errstate(invalid="ignore"):
        far = ~(same | (np.abs(got.astype(np.float64) - expected) <= within))
    if not far.any():
        return []
    at = tuple(int(i) for i in np.argwhere(far)[0])
    return [f"{what} at {at} is {got[at]}, not {expected[at]} ({int(far.sum())} of {far.size})"]


# ----------------------------------------------------------------------------------------------------------------------
# Regions
# ----------------------------------------------------------------------------------------------------------------------


def components(rng: np.random.Generator, library) -> list[str]:
    pool = np.array([0, 1, 2, 18, IGNORE, -1, 300, -(2**63), 2**63 - 1, 2**31 - 1, 7], np.int64)
    labels = label_map(rng, rng.choice(pool, rng.integers(1, 8)), torch.uint8)
    connectivity, background = int(rng.choice([4, 8])), int(rng.choice([IGNORE, IGNORE, 0, -1, 1000]))
    ids, counts = (x.numpy() for x in library.connected_components(labels, connectivity, background))
    faults = []
    for b, image in enumerate(labels.long().numpy()):
        # Ranks: scikit-image and cc3d take no number that is as large.
        known, dense = np.unique(image, return_inverse=True)
        dense = np.where(image == background, 0, dense.reshape(image.shape) + 1).astype(np.int32)
        expected = skimage.measure.label(dense, background=0, connectivity=connectivity // 4)
        faults += off(f"ids of image {b}", ids[b], expected) + off("count", counts[b], np.asarray(expected.max()))
        other = cc3d.connected_components(dense, connectivity=connectivity).astype(np.int64)
        pairs = np.unique(np.stack([ids[b].ravel(), other.ravel()]), axis=1)
        if not len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]:
            faults.append(f"components of image {b} are not cc3d's (values {known.tolist()})")
    return faults


def regions(rng: np.random.Generator, library) -> list[str]:
    pool = rng.permutation(np.array([*range(12), IGNORE, -1, 300, 2**62], np.int64))
    split, end = rng.integers(0, 5), rng.integers(5, 10)
    stuff, things = pool[:split].tolist(), pool[split:end].tolist()
    labels = label_map(rng, rng.choice(pool, rng.integers(1, 12)), torch.uint8)
    most, connectivity = int(rng.integers(1, 12)), int(rng.choice([4, 8]))
    segments, areas = (x.numpy() for x in library.find_regions(labels, stuff, things, most, connectivity))
    faults = []
    for b, image in enumerate(labels.long().numpy()):
        expected = np.full(image.shape, -1)
        area = np.zeros(len(stuff) + len(things) * most, np.int64)
        for slot, class_id in enumerate(stuff):
            expected[image == class_id] = slot
            area[slot] = (image == class_id).sum()
        for t, class_id in enumerate(things):
            structure = np.ones((3, 3)) if connectivity == 8 else None
            found, _ = scipy.ndimage.label(image == class_id, structure)
            sizes = np.bincount(found.ravel())[1:]
            first = [np.flatnonzero(found.ravel() == i + 1)[0] for i in range(len(sizes))]
            for rank, i in enumerate(sorted(range(len(sizes)), key=lambda i: (-sizes[i], first[i]))[:most]):
                expected[found == i + 1] = len(stuff) + t * most + rank
                area[len(stuff) + t * most + rank] = sizes[i]
        faults += off(f"segments of image {b}", segments[b], expected) + off(f"areas of image {b}", areas[b], area)
    return faults


def means(rng: np.random.Generator, library) -> list[str]:
    num = int(rng.integers(0, 9))
    outside = [-1, -1, -7, num, num + 3, 2**40] if rng.random() < 0.5 else [-1]
    segments = label_map(rng, np.array([*range(num), *outside], np.int64), torch.int16)
    images, height, width = segments.shape
    channels = int(rng.choice([1, 3, 8, 17, 40]))
    features, _ = numbers(rng, images, channels, height, width)
    if rng.random() < 0.4:
        features = features.contiguous(memory_format=torch.channels_last)
    features = strided(rng, features).requires_grad_()
    got = library.segment_mean(features, segments, num)
    grads = torch.from_numpy(rng.normal(size=got.shape)).to(got.dtype)
    (gradient,) = torch.autograd.grad(got, features, grads) if got.requires_grad else (torch.zeros_like(features),)
    values, flat = exact(features), segments.long().numpy()
    expected, sizes = np.zeros(got.shape), np.zeros(got.shape)
    expected_gradient = np.zeros(values.shape)
    for b in range(images):
        for s in range(num):
            inside = values[b][:, flat[b] == s]
            if inside.size:
                expected[b, s], sizes[b, s] = inside.mean(1), np.abs(inside).mean(1)
                share = exact(grads)[b, s] / inside.shape[1]
                expected_gradient[b][:, flat[b] == s] = share[:, None]
    rounding = float(torch.finfo(features.dtype).eps)
    near = np.abs(expected_gradient) * rounding * 1.01 + (6.0e-8 if features.dtype == torch.float16 else 1e-40)
    return [
        *off("means", exact(got), expected, 8 * EPS * sizes + 1e-37),
        *off("gradient", exact(gradient), expected_gradient, near),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Banks
# ----------------------------------------------------------------------------------------------------------------------


def nearest(rng: np.random.Generator, library) -> list[str]:
    num, classes, rows = (int(rng.integers(low, high)) for low, high in ((0, 40), (1, 6), (1, 40)))
    width = int(rng.choice([1, 7, 8, 64, 255, 257]))
    queries, whole = numbers(rng, num, width)
    bank = queries.new_tensor(rng.integers(-4, 5, (classes, rows, width)) if whole else rng.normal(size=1))
    if not whole:
        scale = float(queries.abs().max()) if num else 1.0
        bank = torch.from_numpy(rng.normal(size=(classes, rows, width)) * scale).to(queries.dtype)
    of = rng.integers(-1, classes + 1, num)
    filled = rng.integers(-2, rows + 3, classes)
    queries = queries.requires_grad_()
    arguments = (queries, torch.from_numpy(of), strided(rng, bank), torch.from_numpy(filled))
    distances, found = library.nearest_l1(*arguments)
    there = torch.isfinite(distances)
    gradient = torch.zeros_like(queries)
    if there.any():
        (gradient,) = torch.autograd.grad(distances[there].sum(), queries)
    faults = []
    for n in range(num):
        valid = int(np.clip(filled[of[n]], 0, rows)) if 0 <= of[n] < classes else 0
        query, row = exact(queries)[n], int(found[n])
        if valid == 0:
            if row != -1 or distances[n].item() != np.inf or gradient[n].any():
                faults.append(f"query {n} has nothing near it, and got row {row} at {distances[n].item()}")
            continue
        every = cdist(query[None], exact(bank)[of[n], :valid], "cityblock")[0]
        near = 0 if whole else 2 * EPS * max(width**0.5, 4) * float(every.min() + np.abs(query).sum())
        if not 0 <= row < valid or (row != every.argmin() if whole else every[row] > every.min() + near):
            faults.append(f"query {n} has row {row}, not {int(every.argmin())} of {valid}")
            continue
        faults += off(f"distance of query {n}", exact(distances)[n], every[row], near)
        faults += off(f"gradient of query {n}", exact(gradient)[n], np.sign(query - exact(bank)[of[n], row]))
    return faults


def ring_write(rng: np.random.Generator, library) -> list[str]:
    classes, width = int(rng.integers(1, 6)), int(rng.choice([1, 4, 5, 64]))
    sizes = rng.integers(1, 7, classes)
    starts = np.cumsum(sizes) - sizes
    storage, _ = numbers(rng, int(sizes.sum()) + 1, width)
    written = rng.integers(0, 20, classes)
    expected, expected_written = exact(storage).copy(), written.copy()
    ours = torch.from_numpy(written.copy())
    for _ in range(int(rng.integers(1, 4))):
        num = int(rng.integers(0, 30))
        vectors = torch.from_numpy(rng.integers(-8, 9, (num, width)).astype(np.float32))
        of = rng.integers(-1, classes + 1, num)
        library.ring_write(
            storage,
            ours,
            strided(rng, vectors),
            torch.from_numpy(of),
            torch.from_numpy(starts),
            torch.from_numpy(sizes),
        )
        for vector, k in zip(vectors.numpy(), of, strict=True):
            if 0 <= k < classes:
                expected[starts[k] + expected_written[k] % sizes[k]] = vector
                expected_written[k] += 1
    return [*off("storage", exact(storage), expected), *off("written", ours.numpy(), expected_written)]


def select_rings(rng: np.random.Generator, library) -> list[str]:
    images, slots, kinds = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 12), (1, 6)))
    areas = rng.integers(-1, 4, (images, slots)).astype(np.int32)
    rings, classes = rng.integers(-1, 5, slots), rng.integers(0, kinds, slots)
    gated = int(rng.integers(0, slots + 1))
    logits, _ = numbers(rng, images * gated, kinds)
    got = library.select_rings(
        strided(rng, torch.from_numpy(areas)),
        torch.from_numpy(rings),
        logits if gated else None,
        torch.from_numpy(classes) if gated else None,
    )
    counts = areas > 0
    if gated:
        counts[:, :gated] &= exact(logits).argmax(1).reshape(images, gated) == classes[:gated]
    return off("rings", got.numpy(), np.where(counts, rings, -1))


def matching_losses(rng: np.random.Generator, library) -> list[str]:
    images, stuff, things, most, width = (int(rng.integers(1, high)) for high in (4, 5, 5, 6, 50))
    shape = (images, stuff + things * most)
    dtype = (torch.float32, torch.float64)[rng.integers(2)]
    rings, rows = rng.integers(-1, 3, shape), rng.integers(-1, 3, shape)
    distances = torch.from_numpy(np.where(rows < 0, np.inf, rng.random(shape) * 100)).to(dtype).requires_grad_()
    arguments = distances, torch.from_numpy(rows), torch.from_numpy(rings), stuff, most, width
    losses = library.matching_losses(*arguments)
    weights = rng.normal(size=2)
    total = losses[0] * float(weights[0]) + losses[1] * float(weights[1])
    (gradient,) = torch.autograd.grad(total, distances)
    share = np.full(shape, 1.0)
    of_thing = (rings[:, stuff:].reshape(images, things, most) >= 0).sum(2, keepdims=True)
    share[:, stuff:] = (1 / np.maximum(of_thing, 1)).repeat(most, 2).reshape(images, -1)
    share = np.where(rows < 0, 0, share) / (width * images)
    terms = np.where(rows < 0, 0, exact(distances)) * share
    near = 64 * EPS
    kinds = np.array([0] * stuff + [1] * things * most)
    return [
        *off("stuff loss", exact(losses[0]), terms[:, :stuff].sum(), near * terms.sum()),
        *off("instance loss", exact(losses[1]), terms[:, stuff:].sum(), near * terms.sum()),
        *off("gradient", exact(gradient), share * weights[kinds], near * np.abs(share * weights[kinds])),
    ]


CHECKS: dict[str, Callable[[np.random.Generator, object], list[str]]] = {
    "connected_components": components,
    "find_regions": regions,
    "segment_mean": means,
    "nearest_l1": nearest,
    "ring_write": ring_write,
    "select_rings": select_rings,
    "matching_losses": matching_losses,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = fuzz(int(sys.argv[1]), count=int(sys.argv[2]))
    for what, cases, faults in found:
        print(f"{what:30} {cases:8} tried {len(faults):6} bad", *faults[:5], sep="\n    " if faults else "")
    sys.exit(any(faults for _, _, faults in found))
