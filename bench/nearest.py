"""nearest_l1 at the matching's size against what finds nearest rows in L1 today: whole banks, every slot filled.

The peers are given what they need and this op does not: queries already grouped by class, ten each, and full banks.
"""

import pytest
import torch
from torch import Tensor

from bench.segment_mean import ours
from bench.timing import Contender, compare, needs
from simfast import ops, reference
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import DEVICES, needs_gpu

WIDTH, STUFF, THINGS, STUFF_ROWS, INSTANCES = 2048, 8, 11, 50, 10
ROWS = STUFF_ROWS * INSTANCES
BANKS = [pytest.param(torch.float32, id="f32-bank"), pytest.param(torch.bfloat16, id="bf16-bank")]
NEEDS_GPU = "needs a GPU"


def features(*shape: int, dtype: torch.dtype = torch.float32, device: str, seed: int) -> Tensor:
    """Means of what a last ReLU leaves: not negative."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, WIDTH, generator=g).relu().to(device, dtype)


def things(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten regions of each thing class, in the order of their slots, and a full bank."""
    queries = features(THINGS * INSTANCES, device=device, seed=0)
    classes = torch.arange(THINGS, device=device).repeat_interleave(INSTANCES)
    bank = features(THINGS, ROWS, dtype=dtype, device=device, seed=1)
    return queries, classes, bank, torch.full((THINGS,), ROWS, device=device)


def cdist(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    distances, rows = torch.cdist(queries.view(THINGS, INSTANCES, WIDTH), bank.float(), p=1).min(2)
    return distances.flatten(), rows.flatten()


def broadcast(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    differences = queries.view(THINGS, INSTANCES, 1, WIDTH) - bank[:, None].float()
    distances, rows = differences.abs().sum(3).min(2)
    return distances.flatten(), rows.flatten()


def keops(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    from pykeops.torch import LazyTensor

    query = LazyTensor(queries.view(THINGS, INSTANCES, 1, WIDTH))
    row = LazyTensor(bank.float().view(THINGS, 1, ROWS, WIDTH))
    distances, rows = (query - row).abs().sum(-1).min_argmin(dim=2)
    return distances.flatten(), rows.flatten()


def faiss_gpu(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    import faiss
    import faiss.contrib.torch_utils

    if not faiss_resources:
        faiss_resources.append(faiss.StandardGpuResources())
    found = [
        faiss.knn_gpu(faiss_resources[0], q, b, 1, metric=faiss.METRIC_L1)
        for q, b in zip(queries.view(THINGS, INSTANCES, WIDTH), bank.float(), strict=True)
    ]
    return torch.cat([f[0] for f in found]).flatten(), torch.cat([f[1] for f in found]).flatten()


faiss_resources = []


def cuvs(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    from cuvs.distance import pairwise_distance

    distances = queries.new_empty(THINGS, INSTANCES, ROWS)
    for q, b, out in zip(queries.view(THINGS, INSTANCES, WIDTH), bank.float(), distances, strict=True):
        pairwise_distance(q, b, out, metric="l1")
    distances, rows = distances.min(2)
    return distances.flatten(), rows.flatten()


def gpu_peer(name: str, package: str, run, device: str, check) -> Contender:
    missing = NEEDS_GPU if device == "cpu" else needs(package)
    return Contender(name, None if missing else run, check, missing, graph=False)  # streams of their own


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", BANKS)
def bench_forward(benchmark, dtype, device):
    queries, classes, bank, filled = things(dtype, device)
    expected, nearest = reference.nearest_l1(queries, classes, bank, filled)

    def check(result: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(result[0], expected, rtol=1e-5, atol=0)
        assert torch.equal(result[1].long(), nearest)

    compiled = torch.compile(broadcast)
    contenders = ours(device, lambda: ops.nearest_l1(queries, classes, bank, filled), check)
    contenders += [
        Contender("reference", lambda: reference.nearest_l1(queries, classes, bank, filled), check),
        Contender("cdist and min", lambda: cdist(queries, bank), check),
        Contender("compiled broadcast", lambda: compiled(queries, bank), check),
        gpu_peer("KeOps", "pykeops.torch", lambda: keops(queries, bank), device, check),
        gpu_peer("FAISS-GPU", "faiss.contrib.torch_utils", lambda: faiss_gpu(queries, bank), device, check),
        gpu_peer("cuVS", "cuvs.distance", lambda: cuvs(queries, bank), device, check),
    ]
    compare(benchmark, contenders, device, bank.nbytes + queries.nbytes, rounds=11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("live", [INSTANCES, 3], ids=["all-slots", "3-of-10-slots"])
@pytest.mark.parametrize("dtype", BANKS)
def bench_both_banks_of_an_image(benchmark, dtype, live, device):
    """The 118 slots of one image against stuff and thing banks, in one call and in two."""
    queries, thing_of, bank, filled = things(dtype, device)
    slot = torch.arange(THINGS * INSTANCES, device=device) % INSTANCES
    thing_of = torch.where(slot < live, thing_of, -1)
    stuff_of = torch.arange(STUFF, device=device)
    stuff_queries = features(STUFF, device=device, seed=2)
    stuff_bank = features(STUFF, STUFF_ROWS, dtype=dtype, device=device, seed=3)
    stuff_filled = torch.full((STUFF,), STUFF_ROWS, device=device)

    all_queries, flat = torch.cat([stuff_queries, queries]), torch.cat([stuff_bank.flatten(0, 1), bank.flatten(0, 1)])
    all_classes = torch.cat([stuff_of, torch.where(thing_of >= 0, thing_of + STUFF, -1)])
    starts = torch.cat([stuff_of * STUFF_ROWS, STUFF * STUFF_ROWS + torch.arange(THINGS, device=device) * ROWS])
    all_filled = torch.cat([stuff_filled, filled])

    def in_two_calls() -> tuple[Tensor, Tensor]:
        stuff = ops.nearest_l1(stuff_queries, stuff_of, stuff_bank, stuff_filled)
        return tuple(map(torch.cat, zip(stuff, ops.nearest_l1(queries, thing_of, bank, filled), strict=True)))

    def in_one_call() -> tuple[Tensor, Tensor]:
        return nearest_l1_ragged(all_queries, all_classes, flat, starts, all_filled, ROWS)

    expected, nearest = (
        torch.cat(pair)
        for pair in zip(
            reference.nearest_l1(stuff_queries, stuff_of, stuff_bank, stuff_filled),
            reference.nearest_l1(queries, thing_of, bank, filled),
            strict=True,
        )
    )

    def check(result: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(result[0], expected, rtol=1e-5, atol=0)
        assert torch.equal(result[1], nearest)

    contenders = ours(device, in_one_call, check)
    contenders.append(Contender("in two calls", in_two_calls, check))
    compare(benchmark, contenders, device, flat.nbytes + all_queries.nbytes, rounds=11)


@pytest.mark.parametrize("device", DEVICES)
def bench_backward(benchmark, device):
    queries, classes, bank, filled = things(torch.float32, device)
    queries.requires_grad_()
    distances, rows = ops.nearest_l1(queries, classes, bank, filled)
    grad = torch.randn(len(queries), generator=torch.Generator().manual_seed(0)).to(device)
    expected = (queries.detach() - bank[classes, rows]).sign() * grad[:, None]

    def check(result: Tensor) -> None:
        assert torch.equal(result, expected)

    def run() -> Tensor:
        return torch.autograd.grad(distances, queries, grad, retain_graph=True)[0]

    def gather() -> Tensor:
        return (queries.detach() - bank[classes, rows]).sign() * grad[:, None]

    contenders = [*ours(device, run, check), Contender("gather, sign, product", gather, check)]
    compare(benchmark, contenders, device, queries.numel() * 5, rounds=11)


@needs_gpu
@pytest.mark.parametrize("dtype", BANKS)
def bench_tiles(benchmark, dtype):
    """The first kernel's tile, swept: what Tile's defaults are chosen from."""
    from simfast.ops.nearest_triton import Tile, forward

    queries, classes, bank, filled = things(dtype, "cuda")
    expected, nearest = reference.nearest_l1(queries, classes, bank, filled)

    def check(result: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(result[0], expected, rtol=1e-5, atol=0)
        assert torch.equal(result[1], nearest)

    sizes = (16, 8, 2), (16, 16, 2), (16, 32, 4), (32, 4, 4), (32, 16, 4), (32, 8, 8), (64, 8, 8), (64, 8, 4)
    tiles = [Tile(), *(Tile(*size) for size in sizes)]
    flat = bank.flatten(0, 1)
    contenders = [
        Contender(str(tile), lambda t=tile: forward(queries, classes, flat, None, filled, ROWS, t), check)
        for tile in tiles
    ]
    compare(benchmark, contenders, "cuda", bank.nbytes + queries.nbytes)
