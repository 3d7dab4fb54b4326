"""The ops at the paper's sizes: a call of each, what its result must be, and the bytes that it must move at least."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import matching as matching_bench
from simfast import ops, reference
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import STUFF, THINGS, assert_means_close, assert_same, feature_maps, smooth_labels

SOURCE, TARGET, FULL = (91, 161), (65, 129), (1024, 2048)
CHANNELS, STUFF_ROWS, INSTANCES = 2048, 50, 10
SLOTS, MOST_ROWS = len(STUFF) + len(THINGS) * INSTANCES, STUFF_ROWS * INSTANCES
ROWS = torch.tensor([STUFF_ROWS] * len(STUFF) + [MOST_ROWS] * len(THINGS))  # of each ring
RING = torch.cat([torch.arange(len(STUFF)), len(STUFF) + torch.arange(SLOTS - len(STUFF)) // INSTANCES])  # of each slot


class Work(NamedTuple):
    """A call to be timed, what its result must be, and the bytes that it must move at least."""

    run: Callable[[], Any]
    check: Callable[[Any], None]
    bytes_moved: int


def components(labels: Tensor, device: str) -> Work:
    expected = ops.connected_components(labels)
    there = labels.to(device)

    def check(found) -> None:
        for one, other in zip(found, expected, strict=True):
            assert_same(one.cpu(), other)

    return Work(lambda: ops.connected_components(there), check, there.nbytes + 4 * there.numel())


def regions(labels: Tensor, device: str) -> Work:
    expected = ops.find_regions(labels, STUFF, THINGS)
    there = labels.to(device)

    def check(found) -> None:
        for one, other in zip(found, expected, strict=True):
            assert_same(one.cpu(), other)

    return Work(lambda: ops.find_regions(there, STUFF, THINGS), check, there.nbytes + 4 * there.numel())


def pooled(size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format, device: str):
    labels = smooth_labels(1, *size, scale=8, ignore=0.1)
    segments, areas = ops.find_regions(labels, STUFF, THINGS)
    features = feature_maps(1, CHANNELS if device == "cuda" else 8, *size, dtype)
    return features.to(device).contiguous(memory_format=memory_format), segments.to(device), areas.shape[1]


def mean(size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> Work:
    features, segments, count = pooled(size, dtype, memory_format, device)
    exact = reference.segment_mean(features.double(), segments, count)
    return Work(
        lambda: ops.segment_mean(features, segments, count),
        lambda found: assert_means_close(found, exact),
        features.nbytes + segments.nbytes + 4 * exact.numel(),
    )


def mean_backward(size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> Work:
    features, segments, count = pooled(size, dtype, memory_format, device)
    means = ops.segment_mean(features.requires_grad_(), segments, count)
    grad = torch.randn(means.shape, generator=torch.Generator().manual_seed(0)).to(device)
    index = torch.where(segments >= 0, segments, count).flatten().long()
    counts = torch.zeros(count + 1, device=device).index_add_(0, index, torch.ones(len(index), device=device))[:-1]
    quotients = torch.cat([grad[0] / counts.clamp(min=1)[:, None], grad.new_zeros(1, grad.shape[2])]).to(dtype)
    expected = quotients[index].t().view(features.shape)

    def run() -> Tensor:
        return torch.autograd.grad(means, features, grad, retain_graph=True)[0]

    return Work(run, lambda found: assert_same(found, expected), features.nbytes + segments.nbytes + grad.nbytes)


def search(dtype: torch.dtype, live: int, device: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The 118 slots of one image, so many of each thing class's ten taken, against full banks; distances and rows as
    the CPU has them."""
    width = CHANNELS if device == "cuda" else 8
    g = torch.Generator().manual_seed(0)
    queries = torch.randn(SLOTS, width, generator=g).relu()
    bank = torch.randn(int(ROWS.sum()), width, generator=g).relu().to(dtype)
    taken = (torch.arange(SLOTS) - len(STUFF)) % INSTANCES < live
    taken[: len(STUFF)] = True
    classes = torch.where(taken, RING, -1)
    inputs = (queries, classes, bank, ROWS.cumsum(0) - ROWS, ROWS)
    expected = nearest_l1_ragged(*inputs, MOST_ROWS)
    return tuple(x.to(device) for x in inputs), tuple(x.to(device) for x in expected)


def assert_as_near(found: Tensor, expected: Tensor, distance: Callable[[Tensor], Tensor]) -> None:
    """The same rows, but for those that are as near up to the rounding of a sum; none where there is none.

    Args:
        found, expected: on the CPU, as all that `distance` computes with: a wrong row must not break the device.
        distance: of each query from such rows.
    """
    assert torch.equal(found >= 0, expected >= 0), "a row where there is none, or none where there is one"
    there = expected >= 0
    torch.testing.assert_close(distance(found)[there], distance(expected)[there], rtol=1e-5, atol=0)


def nearest(dtype: torch.dtype, live: int, device: str, tile: tuple[int, int, int] | None = None) -> Work:
    """With another tile of the first kernel than its default, if that is given."""
    inputs, (distances, rows) = search(dtype, live, device)
    queries, classes, bank, starts, filled = (x.cpu() for x in inputs)

    def check(found) -> None:
        torch.testing.assert_close(found[0], distances, rtol=1e-5, atol=0)
        row = found[1].cpu()
        assert bool((row < filled[classes]).all()), "a row beyond the class's last"
        assert_as_near(row, rows.cpu(), lambda row: (queries - bank[starts[classes] + row].float()).abs().sum(1))

    def run() -> tuple[Tensor, ...]:
        if tile is None:
            return nearest_l1_ragged(*inputs, MOST_ROWS)
        from simfast.ops.nearest_triton import Tile, forward  # here: on the CPU there may be no Triton

        return forward(*inputs, MOST_ROWS, Tile(*tile))

    # Classes of which no slot is taken need not be read: here each has some.
    return Work(run, check, inputs[2].nbytes + inputs[0].nbytes * 5 // 4)


def nearest_backward(device: str) -> Work:
    (queries, classes, bank, starts, filled), (_, nearest_rows) = search(torch.float32, INSTANCES, device)
    queries.requires_grad_()
    distances, _ = nearest_l1_ragged(queries, classes, bank, starts, filled, MOST_ROWS)
    grad = torch.randn(len(queries), generator=torch.Generator().manual_seed(0)).to(device)
    expected = (queries.detach() - bank[starts[classes] + nearest_rows]).sign() * grad[:, None]

    def run() -> Tensor:
        return torch.autograd.grad(distances, queries, grad, retain_graph=True)[0]

    return Work(run, lambda found: assert_same(found, expected), queries.nbytes * 5 // 4)


def ring_write(dtype: torch.dtype, device: str) -> Work:
    """A vector for each slot of one image, into full rings."""
    width = CHANNELS if device == "cuda" else 8
    vectors = torch.randn(SLOTS, width, generator=torch.Generator().manual_seed(0))
    starts = ROWS.cumsum(0) - ROWS
    storage, written = torch.zeros(int(ROWS.sum()), width, dtype=dtype), ROWS + 3
    there = [x.to(device, copy=True) for x in (storage, written, vectors, RING, starts, ROWS)]

    def run() -> tuple[Tensor, Tensor]:
        ops.ring_write(*there)
        return there[0], there[1]

    def check(found) -> None:
        """The last rows of each ring, however often it has been written."""
        storage, written = (x.cpu() for x in found)
        for k, last in enumerate(written.tolist()):
            given = vectors[k == RING].to(dtype)
            rows = starts[k] + torch.arange(last - len(given), last) % ROWS[k]
            assert_same(storage[rows], given, f"ring {k}")

    return Work(run, check, vectors.nbytes + vectors.numel() * storage.element_size())


def select_rings(device: str) -> Work:
    """With what the head says of every slot."""
    g = torch.Generator().manual_seed(0)
    areas = torch.randint(0, 3, (1, SLOTS), generator=g, dtype=torch.int32)
    logits, slot_classes = torch.randn(SLOTS, 19, generator=g), torch.tensor(STUFF + THINGS)[RING]
    logits[::2, :] += 9 * torch.nn.functional.one_hot(slot_classes[::2], 19)
    expected = ops.select_rings(areas, RING, logits, slot_classes)
    there = [x.to(device) for x in (areas, RING, logits, slot_classes)]
    return Work(
        lambda: ops.select_rings(*there),
        lambda found: assert_same(found.cpu(), expected),
        sum(x.nbytes for x in (*there, expected)),
    )


def losses(backward: bool, device: str) -> Work:
    """Both losses of the slots of one image, or their gradient."""
    g = torch.Generator().manual_seed(0)
    rows, rings = (torch.randint(-1, 5, (1, SLOTS), generator=g) for _ in range(2))
    distances = torch.where(rows >= 0, 1000 * torch.rand(1, SLOTS, generator=g), torch.inf).requires_grad_()
    there = distances.detach().to(device, copy=True).requires_grad_(), rows.to(device), rings.to(device)
    sizes, grads = (len(STUFF), INSTANCES, CHANNELS), [torch.tensor(0.01, device=device)] * 2
    expected, found = reference.matching_losses(distances, rows, rings, *sizes), ops.matching_losses(*there, *sizes)
    moved = sum(x.nbytes for x in there)
    if not backward:
        expected = torch.stack(expected).detach()

        def check(found) -> None:
            torch.testing.assert_close(torch.stack(found).detach().cpu(), expected, rtol=1e-5, atol=0)

        return Work(lambda: ops.matching_losses(*there, *sizes), check, moved)
    (gradient,) = torch.autograd.grad(expected, distances, [x.cpu() for x in grads])
    return Work(
        lambda: torch.autograd.grad(found, there[0], grads, retain_graph=True)[0],
        lambda found: assert_same(found.cpu(), gradient),
        moved,
    )


def launch(device: str) -> Work:
    """A kernel that does next to nothing."""
    x = torch.zeros(1, device=device)
    return Work(lambda: x.fill_(1), lambda found: assert_same(found.cpu(), torch.ones(1)), x.nbytes)


def whole_matching(case: str, device: str) -> Work:
    """Both domains with loss and gradient. Its memory changes with every call: bench/matching.py checks its values."""
    dtype, memory_format = matching_bench.CASES[case]
    inputs, head = matching_bench.make_inputs(dtype, memory_format, device), matching_bench.make_head(device)
    module = matching_bench.make_matching("fused", device)
    source, _, target, _ = inputs
    bytes_moved = (source.numel() + 2 * target.numel()) * source.element_size() + module.bank.storage.nbytes

    def check(found) -> None:
        assert all(bool(x.isfinite().all()) for x in found)

    return Work(matching_bench.runner(module, head, inputs), check, bytes_moved)
