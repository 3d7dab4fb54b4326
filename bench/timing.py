"""Times of several ways to do the same work: right first, then fast; device and call apart; taken in turns.

On a GPU, device time is what CUDA events enclose, with the second-level cache filled with other data before every
call; call time is how long the host is busy with the call. On the CPU caches are warm, and the processor time of all
threads stands beside the time on the clock: where other programs run too, it is the steadier of the two.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

LONGEST = 2.0  # seconds a contender may take in all, so that a slow one does not hold up the others


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Args:
        name: as the result calls it.
        run: does the work once.
        check: raises AssertionError if what `run` returned is wrong.
        missing: why it cannot run here; it is then named in the result without a time.
        threads: how many threads of torch's pool it runs on; None leaves the number as it is.
    """

    name: str
    run: Callable[[], Any] | None = None
    check: Callable[[Any], None] | None = None
    missing: str | None = None
    threads: int | None = None


def needs(package: str) -> str | None:
    """None if `package` can be imported, else what to write as Contender.missing."""
    try:
        __import__(package)
    except ImportError as failure:
        return str(failure)
    return None


def compare(benchmark, contenders: list[Contender], device: str, bytes_moved: int, rounds: int = 21) -> None:
    """Checks all contenders, then times them in turns; the first one is also what pytest-benchmark reports.

    Args:
        benchmark: pytest-benchmark's fixture; extra_info receives `contenders`, `device`, `bytes_moved`, `floor_ms`.
        contenders: the first is the one that the others are compared with.
        device: "cpu" or "cuda".
        bytes_moved: what must be read and written at least, for the share of the copy floor.
        rounds: samples of each contender, fewer for those that take longer than LONGEST in all.
    """
    present = [c for c in contenders if c.missing is None]
    for contender in present:
        with _threads(contender.threads):
            result = contender.run()
        if contender.check is not None:
            contender.check(result)  # a wrong contender ends the case: no time for it

    samples: dict[str, list[tuple[float, float]]] = {c.name: [] for c in present}
    spent = dict.fromkeys(samples, 0.0)
    sample = _sample_cuda if device == "cuda" else _sample_cpu
    for _ in range(rounds):
        for contender in present:
            taken = samples[contender.name]
            if spent[contender.name] < LONGEST or len(taken) < 3:
                began = time.perf_counter()
                with _threads(contender.threads):
                    taken.append(sample(contender.run))
                spent[contender.name] += time.perf_counter() - began

    floor = bytes_moved / copy_rate(device)
    first = statistics.median(s[0] for s in samples[contenders[0].name])
    rows = []
    for contender in contenders:
        if contender.missing is not None:
            rows.append({"name": contender.name, "missing": contender.missing})
            continue
        times = [s[0] for s in samples[contender.name]]
        row = {
            "name": contender.name,
            "device_ms": statistics.median(times) * 1e3,
            "fastest_ms": min(times) * 1e3,
            "slowest_ms": max(times) * 1e3,
            "samples": len(times),
            "times_the_first": statistics.median(times) / first,
            "share_of_copy_floor": floor / statistics.median(times),
        }
        second = "call_ms" if device == "cuda" else "processor_ms"
        row[second] = statistics.median(s[1] for s in samples[contender.name]) * 1e3
        rows.append(row)
    benchmark.extra_info.update(device=device, bytes_moved=bytes_moved, floor_ms=floor * 1e3, contenders=rows)
    with _threads(present[0].threads):
        benchmark.pedantic(present[0].run, rounds=5, warmup_rounds=1)


def _sample_cpu(run: Callable[[], Any]) -> tuple[float, float]:
    run()  # untimed: whoever ran before, the data is in the caches now
    busy, began = time.process_time(), time.perf_counter()
    run()
    return time.perf_counter() - began, time.process_time() - busy


def _sample_cuda(run: Callable[[], Any]) -> tuple[float, float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    _evict()  # keeps the GPU busy while the host enqueues what follows, so that no launch gap is timed
    begin.record()
    began = time.perf_counter()
    run()
    called = time.perf_counter() - began
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3, called


_other_data: list[torch.Tensor] = []


def _evict() -> None:
    if not _other_data:
        size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
        _other_data.append(torch.empty(max(size, 256 << 20), dtype=torch.uint8, device="cuda"))
    _other_data[0].zero_()


_rates: dict[str, float] = {}


def copy_rate(device: str) -> float:
    """Bytes per second, read plus written, of a large copy on this device, measured once in this process."""
    if device not in _rates:
        size = (1 << 30) if device == "cuda" else (128 << 20)
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        sample = _sample_cuda if device == "cuda" else _sample_cpu
        times = sorted(sample(lambda: target.copy_(source))[0] for _ in range(9))
        _rates[device] = 2 * size / times[0]
    return _rates[device]


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """torch's pool with so many threads; setting them takes longer than a small op, so it stays out of the time."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
