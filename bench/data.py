"""Pairs of a source and a target image per second that the loader hands out, from PNG files and from a prepared cache.

    python -m bench.run --only data --out DIR           # minutes
    python -m pytest bench/data.py -k quick -o python_functions=bench_*     # seconds, small images

The pictures are made here, of the paper's sizes, and compress about as well as the real ones. They stay in the system's
file cache: what a disk can read is another question (5 MB a pair from a cache). Times are of one pair, in the steady
state; processor time is of all threads and processes together, so 1000 / "call or processor ms" is what a core yields.
"""

import multiprocessing
import os
import statistics
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.timing import copy_rate
from simfast.data import open_dataset
from simfast.data.loader import Batch, DomainLoader
from simfast.data.prepare import prepare
from simfast.data.read_ahead import READ_AHEAD
from simfast.testing import DEVICES, assert_same

Size = tuple[int, int]
# Of files and in training, width x height, for each domain; pairs in a sample from PNG and from a cache; samples.
CASES = {
    "paper": ({"source": ((1914, 1052), (1280, 720)), "target": ((2048, 1024), (1024, 512))}, (12, 200), 5),
    "quick": ({"source": ((480, 264), (320, 180)), "target": ((512, 256), (256, 128))}, (8, 100), 3),
}
PICTURES = 8  # of each domain
WORKERS = sorted({0, 2, os.cpu_count() or 1})


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Data sets from PNG files and from a cache, pairs in a sample of each, samples."""
    sizes, pairs, samples = CASES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    found = {"PNG": [], "cache": []}
    for domain, (size, trained) in sizes.items():
        write_pictures(root / domain, size)
        open_part = partial(open_dataset, "folder", root / domain, "train", trained, labelled=domain == "source")
        prepare(open_part(), root / "cache", 0)
        found["PNG"].append(open_part())
        found["cache"].append(open_part(cache=root / "cache"))
    return found, dict(zip(found, pairs, strict=True)), samples


def write_pictures(folder: Path, size: Size) -> None:
    """Pictures with detail at every scale and a little noise (2.3 MB at 2048x1024, as Cityscapes' have), and label maps
    of blocks."""
    rng, (width, height) = np.random.default_rng(0), size
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(PICTURES):
        picture = rng.normal(0, 0.7, (height, width, 3)).astype(np.float32)
        for cells in (4, 16, 64, 256):
            coarse = 200 / cells**0.5 * rng.random((3, cells * height // width, cells), np.float32)
            planes = [Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC) for plane in coarse]
            picture += np.stack([np.asarray(plane) for plane in planes], -1)
        picture -= picture.min()
        Image.fromarray((picture / picture.max() * 255).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        blocks = Image.fromarray(rng.integers(0, 19, (height // 40, width // 40), np.uint8))
        blocks.resize(size, Image.Resampling.NEAREST).save(folder / "labels" / f"{i}.png")


@pytest.mark.parametrize("device", DEVICES)
def bench_pairs(benchmark, case, device):
    datasets, pairs, samples = case
    expected = list(islice(DomainLoader(*datasets["PNG"], 1, 0, 0, True), 3))
    contenders = [(kind, workers) for kind in ("cache", "PNG") for workers in WORKERS]

    def batches(kind: str, workers: int):
        return iter(DomainLoader(*datasets[kind], 1, 0, workers, True, device=torch.device(device)))

    for contender in contenders:
        loader = batches(*contender)
        for batch, right in zip(islice(loader, len(expected)), expected, strict=True):
            check(batch, right, contender)
        loader.close()

    taken: dict[tuple[str, int], list[tuple[float, float]]] = {contender: [] for contender in contenders}
    for _ in range(samples):
        for kind, workers in contenders:
            taken[kind, workers].append(sample(batches(kind, workers), workers, pairs[kind]))

    size = sum(x.numel() for x in expected[0] if x is not None)
    floor = 2 * size / copy_rate("cpu")
    first = statistics.median(t for t, _ in taken[contenders[0]])
    rows = []
    for (kind, workers), measured in taken.items():
        times = [t for t, _ in measured]
        median, busy = statistics.median(times), statistics.median(b for _, b in measured)
        rows.append({
            "name": f"simfast, {kind}, workers {workers}",
            "device_ms": median * 1e3,
            "fastest_ms": min(times) * 1e3,
            "slowest_ms": max(times) * 1e3,
            "processor_ms": busy * 1e3,
            "pairs_per_second": 1 / median,
            "samples": len(times),
            "times_the_first": median / first,
            "share_of_copy_floor": floor / median,
        })  # fmt: skip
        print(f"\n{device}, {rows[-1]['name']}: {1 / median:.1f} pairs/s, {1 / busy:.1f} a core", end="")
    benchmark.extra_info.update(device=device, bytes_moved=2 * size, floor_ms=floor * 1e3, contenders=rows)


def check(batch: Batch, right: Batch, contender: tuple[str, int]) -> None:
    """The batch that PNG files give without workers, to the bit: else no time for anyone."""
    for name, x, y in zip(Batch._fields, batch, right, strict=True):
        if y is None:
            assert x is None, (contender, name)
        else:
            assert_same(x.cpu(), y, f"{contender}: {name}")


def sample(loader, workers: int, pairs: int) -> tuple[float, float]:
    """Seconds on the clock and of processors for a pair, once what was read ahead is used up; ends the loader."""
    for _ in range(READ_AHEAD * workers + 2):
        next(loader)
    pairs = max(pairs, 2 * workers)
    busy, began = processor_time(), time.perf_counter()
    for _ in range(pairs):
        next(loader)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elapsed, busy = time.perf_counter() - began, processor_time() - busy
    loader.close()
    return elapsed / pairs, busy / pairs


def processor_time() -> float:
    """Seconds that this process and those it started have computed."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
