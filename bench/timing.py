"""Times of several ways to do the same work: right first, then fast; device and call apart; taken in turns.

On a GPU, device time never holds the host's gaps: bench/device_timing.py says how, and every row says which way it was
timed. Call time is how long the host is busy with the call. On the CPU caches are warm, and the processor time of all
threads stands beside the time on the clock: where other programs run too, it is the steadier of the two.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.device_timing import Delayed, timer

LONGEST = 2.0  # seconds a contender may take in all, so that a slow one does not hold up the others
# Set where a run is only to reach every line, on a device that computes nothing: what is wrong is said and passed over.
REHEARSAL = "SIMFAST_BENCH_REHEARSAL"


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Args:
        name: as the result calls it.
        run: does the work once.
        check: raises AssertionError if what `run` returned is wrong.
        missing: why it cannot run here; it is then named in the result without a time.
        threads: how many threads of torch's pool it runs on; None leaves the number as it is.
        graph: False where a replay in a CUDA graph is not what is meant, as for a call that changes its own input, and
            for libraries that compute on the default stream: on that it is then called.
    """

    name: str
    run: Callable[[], Any] | None = None
    check: Callable[[Any], None] | None = None
    missing: str | None = None
    threads: int | None = None
    graph: bool = True


def judge(check: Callable[[Any], None] | None, result: Any) -> str | None:
    """None if `check` finds the result right; raises if it is wrong, or in a rehearsal returns what was wrong."""
    try:
        if check is not None:
            check(result)
    except Exception as wrong:  # in a rehearsal values are anything: whatever a check makes of them
        if not os.environ.get(REHEARSAL):
            raise
        return " ".join(str(wrong).split())[:200] or "wrong"
    return None


def needs(package: str) -> str | None:
    """None if `package` can be imported, else what to write as Contender.missing."""
    try:
        __import__(package)
    except ImportError as failure:
        return str(failure)
    return None


def compare(benchmark, contenders: list[Contender], device: str, bytes_moved: int, rounds: int = 21) -> None:
    """Checks all contenders, then times them in turns.

    Args:
        benchmark: the fixture; extra_info receives `contenders`, `device`, `bytes_moved`, `floor_ms`.
        contenders: the first is the one that the others are compared with.
        device: "cpu" or "cuda".
        bytes_moved: what must be read and written at least, for the share of the copy floor.
        rounds: samples of each contender, fewer for those that take longer than LONGEST in all.
    """
    present = [c for c in contenders if c.missing is None]
    wrong = {}
    for contender in present:
        with _threads(contender.threads), _stream_of(contender, device):
            result = contender.run()
        wrong[contender.name] = judge(contender.check, result)  # a wrong contender ends the case: no time for it

    samples: dict[str, list[tuple[float, float]]] = {c.name: [] for c in present}
    spent = dict.fromkeys(samples, 0.0)
    timers = (
        {c.name: timer(c.run, c.check and partial(judge, c.check), c.graph) for c in present}
        if device == "cuda"
        else {}
    )
    for _ in range(rounds):
        for contender in present:
            taken = samples[contender.name]
            if spent[contender.name] < LONGEST or len(taken) < 3:
                began = time.perf_counter()
                with _threads(contender.threads):
                    taken.append(timers[contender.name].sample() if timers else _sample_cpu(contender.run))
                spent[contender.name] += time.perf_counter() - began

    floor = bytes_moved / copy_rate(device)
    first = statistics.median(s[0] for s in samples[contenders[0].name])
    rows = []
    for contender in contenders:
        if contender.missing is not None:
            rows.append({"name": contender.name, "missing": contender.missing})
            continue
        times = [s[0] for s in samples[contender.name]]
        second = "call_ms" if device == "cuda" else "processor_ms"
        row = {
            "name": contender.name,
            **summary(times),
            "times_the_first": statistics.median(times) / max(first, 1e-9),
            "share_of_copy_floor": floor / max(statistics.median(times), 1e-9),
            second: statistics.median(s[1] for s in samples[contender.name]) * 1e3,
        }
        if timers:
            row["timed_by"] = timers[contender.name].how
        if wrong[contender.name]:
            row["wrong"] = wrong[contender.name]
        rows.append(row)
    benchmark.extra_info.update(device=device, bytes_moved=bytes_moved, floor_ms=floor * 1e3, contenders=rows)


def summary(times: list[float]) -> dict[str, Any]:
    """What a row says of times in seconds."""
    return {
        "device_ms": statistics.median(times) * 1e3,
        "fastest_ms": min(times) * 1e3,
        "slowest_ms": max(times) * 1e3,
        "samples": len(times),
    }


def _sample_cpu(run: Callable[[], Any]) -> tuple[float, float]:
    run()  # untimed: whoever ran before, the data is in the caches now
    busy, began = time.process_time(), time.perf_counter()
    run()
    return time.perf_counter() - began, time.process_time() - busy


_rates: dict[str, float] = {}


def copy_rate(device: str) -> float:
    """Bytes per second, read plus written, of a large copy on this device, measured once in this process."""
    if device not in _rates:
        size = (1 << 30) if device == "cuda" else (128 << 20)
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        if device == "cuda":
            source.random_()
            sample = Delayed(lambda: target.copy_(source)).sample
        else:
            sample = partial(_sample_cpu, lambda: target.copy_(source))
        _rates[device] = 2 * size / max(min(sample()[0] for _ in range(9)), 1e-9)
    return _rates[device]


@contextmanager
def _stream_of(contender: Contender, device: str) -> Iterator[None]:
    """The stream that a contender is called on; work of other ones is done before and afterwards."""
    if device != "cuda" or contender.graph:
        yield
        return
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.default_stream()):
        yield
    torch.cuda.synchronize()


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
