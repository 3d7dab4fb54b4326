"""Device time of every op at the paper's sizes: graphs of 20 calls, the second-level cache refilled before each.

`--label` names the library that is measured (SIMFAST_LIBRARY says which one it is). Beside each time stands the floor:
what must be read and written at least, at the rate of a large copy measured in the same process; `warm_ms` is without
the refills, and so with whatever the cache kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import matching as matching_bench
from bench.device_timing import Replayed, own_stream
from bench.gpu.part import Part, arguments
from bench.timing import copy_rate, judge, summary
from simfast import ops, reference
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import (
    STUFF,
    THINGS,
    assert_same,
    assert_within_budget,
    feature_maps,
    noise_labels,
    smooth_labels,
)

ROUNDS = 11
SOURCE, TARGET, FULL = (91, 161), (65, 129), (1024, 2048)
CHANNELS, STUFF_ROWS, INSTANCES = 2048, 50, 10


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
    honest = reference.segment_mean(features, segments, count)
    return Work(
        lambda: ops.segment_mean(features, segments, count),
        lambda found: assert_within_budget(found, exact, honest),
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
    sizes = torch.tensor([STUFF_ROWS] * len(STUFF) + [STUFF_ROWS * INSTANCES] * len(THINGS))
    g = torch.Generator().manual_seed(0)
    queries = torch.randn(len(STUFF) + len(THINGS) * INSTANCES, width, generator=g).relu()
    bank = torch.randn(int(sizes.sum()), width, generator=g).relu().to(dtype)
    slot = torch.arange(len(THINGS) * INSTANCES)
    things = torch.where(slot % INSTANCES < live, len(STUFF) + slot // INSTANCES, -1)
    classes = torch.cat([torch.arange(len(STUFF)), things])
    inputs = (queries, classes, bank, sizes.cumsum(0) - sizes, sizes)
    expected = nearest_l1_ragged(*inputs, STUFF_ROWS * INSTANCES)
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


def nearest(dtype: torch.dtype, live: int, device: str) -> Work:
    inputs, (distances, rows) = search(dtype, live, device)
    queries, classes, bank, starts, filled = (x.cpu() for x in inputs)

    def check(found) -> None:
        torch.testing.assert_close(found[0], distances, rtol=1e-5, atol=0)
        row = found[1].cpu()
        assert bool((row < filled[classes]).all()), "a row beyond the class's last"
        assert_as_near(row, rows.cpu(), lambda row: (queries - bank[starts[classes] + row].float()).abs().sum(1))

    # Classes of which no slot is taken need not be read: here each has some.
    return Work(
        lambda: nearest_l1_ragged(*inputs, STUFF_ROWS * INSTANCES), check, inputs[2].nbytes + inputs[0].nbytes * 5 // 4
    )


def nearest_backward(device: str) -> Work:
    (queries, classes, bank, starts, filled), (_, nearest_rows) = search(torch.float32, INSTANCES, device)
    queries.requires_grad_()
    distances, _ = nearest_l1_ragged(queries, classes, bank, starts, filled, STUFF_ROWS * INSTANCES)
    grad = torch.randn(len(queries), generator=torch.Generator().manual_seed(0)).to(device)
    expected = (queries.detach() - bank[starts[classes] + nearest_rows]).sign() * grad[:, None]

    def run() -> Tensor:
        return torch.autograd.grad(distances, queries, grad, retain_graph=True)[0]

    return Work(run, lambda found: assert_same(found, expected), queries.nbytes * 5 // 4)


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


def all_cases(device: str) -> dict[str, Callable[[], Work]]:
    last, contiguous = torch.channels_last, torch.contiguous_format
    full = FULL if device == "cuda" else (64, 96)
    cases: dict[str, Callable[[], Work]] = {}
    for kind, make in (("smooth", partial(smooth_labels, scale=32)), ("noise", noise_labels)):
        for dtype in (torch.uint8, torch.int64) if kind == "smooth" else (torch.uint8,):
            cases[f"components {full[0]}x{full[1]} {kind} {dtype}"] = lambda m=make, d=dtype: components(
                m(1, *full).to(d), device
            )
    for size, kind in ((SOURCE, "smooth"), (TARGET, "smooth"), (SOURCE, "noise")):
        make = partial(smooth_labels, scale=16) if kind == "smooth" else noise_labels
        cases[f"regions {size[0]}x{size[1]} {kind} int64"] = lambda s=size, m=make: regions(m(1, *s).long(), device)
    for size in (SOURCE, TARGET):
        for name, op in (("mean", mean), ("mean backward", mean_backward)):
            for layout, memory_format in (("channels-last", last), ("NCHW", contiguous)):
                for dtype in (torch.bfloat16, torch.float32):
                    if dtype == torch.bfloat16 or (layout == "NCHW" and size == SOURCE):
                        cases[f"{name} {size[0]}x{size[1]} {dtype} {layout}"] = partial(
                            op, size, dtype, memory_format, device
                        )
    for dtype in (torch.float32, torch.bfloat16):
        for live in (INSTANCES, 3):
            cases[f"nearest {dtype} bank {live} of 10 slots"] = partial(nearest, dtype, live, device)
    cases["nearest backward"] = partial(nearest_backward, device)
    if device == "cuda":
        for case in matching_bench.CASES:
            cases[f"matching {case}"] = partial(whole_matching, case, device)
    return {name.replace("torch.", ""): make for name, make in cases.items()}


def measure(part: Part, label: str, name: str, make: Callable[[], Work]) -> None:
    if part.device == "cpu":
        work = make()
        work.check(work.run())
        part.row(name, passed=True, skipped="no GPU")
        return
    # One stream for all: a gradient is captured only on that of its forward pass.
    with torch.cuda.stream(own_stream()):
        work = make()
        wrong = judge(work.check, work.run())
        replayed = Replayed(work.run, 1e-4)
        replayed.prove(partial(judge, work.check))
        times = [replayed.sample() for _ in range(ROUNDS)]
        warm = min(replayed.sample_warm() for _ in range(3))
    found = summary([t for t, _ in times])
    floor = work.bytes_moved / copy_rate("cuda")
    part.row(
        name,
        contender=label,
        **found,
        call_ms=min(c for _, c in times) * 1e3,
        warm_ms=warm * 1e3,
        floor_ms=floor * 1e3,
        bytes_moved=work.bytes_moved,
        share_of_copy_floor=floor * 1e3 / max(found["device_ms"], 1e-6),
        timed_by=replayed.how,
        **({"wrong": wrong} if wrong else {}),
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--label", default="simfast", help="name of the library that is measured")
    parser.add_argument("--select", default="", help="only cases whose name begins with this")
    asked = parser.parse_args()
    part = Part("ops" if asked.label == "simfast" else f"ops, {asked.label}", asked)
    cases = {name: make for name, make in all_cases(part.device).items() if name.startswith(asked.select)}
    part.each({name: partial(measure, part, asked.label, name, make) for name, make in cases.items()})
    part.end()


if __name__ == "__main__":
    main()
