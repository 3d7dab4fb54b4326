"""Device time of a call on a GPU without the host's gaps, the second-level cache filled with other data before it.

A call that a CUDA graph can hold is timed by replays of a graph of several (`Replayed`); any other one by events behind
a delay on the device, long enough for the host to enqueue the whole call meanwhile (`Delayed`). What reads a value back
waits for the delay itself: its gaps are part of it, and its `how` says so.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

COPIES = 20  # of a call in a graph, fewer of a long one
LONGEST_GRAPH = 5e-3  # seconds that the copies may take together
LONGEST_DELAY = 20e-3


def timer(run: Callable[[], Any], check: Callable[[Any], None] | None, graph: bool = True) -> "Replayed | Delayed":
    """Replayed where a graph holds the call and its replay gives what `check` wants, else Delayed.

    Without a check it is Delayed: a graph that a library with a stream of its own left empty would be the fastest.
    """
    delayed = Delayed(run, None if graph else torch.cuda.default_stream())
    if not graph or check is None or delayed.seconds > LONGEST_GRAPH:
        return delayed
    try:
        replayed = Replayed(run, delayed.seconds)
        replayed.prove(check)
    except Exception as reason:  # whatever a library raises in a capture: then it is none that a graph can hold
        with suppress(RuntimeError):
            torch.cuda.synchronize()  # the capture's error may come once more
        delayed.no_graph = " ".join(str(reason).split())[:80]
        return delayed
    return replayed


class Delayed:
    """Times by events, begun behind a delay of the device.

    Args:
        run: the call.
        stream: that it is called on; None: the current one.
    """

    def __init__(self, run: Callable[[], Any], stream: torch.cuda.Stream | None = None):
        self.stream = stream
        self.run, self.late, self.seconds, self.no_graph = run, 0, 0.0, ""
        self.delay = 1e-3
        for _ in range(2):  # the first may compile
            self.seconds, called = self.sample()
            self.delay = min(2 * called + 1e-4, LONGEST_DELAY)
        self.late = 0

    @property
    def how(self) -> str:
        how = "events, with the host's gaps" if self.late else "events behind a delay"
        return f"{how}; no graph: {self.no_graph}" if self.no_graph else how

    def sample(self) -> tuple[float, float]:
        """Seconds on the device and of the call."""
        with torch.cuda.stream(self.stream):
            return self._sample()

    def _sample(self) -> tuple[float, float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        refill()
        torch.cuda._sleep(int(self.delay * _cycles_per_second()))
        begin.record()
        began = time.perf_counter()
        self.run()
        called = time.perf_counter() - began
        self.late += begin.query()  # the device came to it before the host was done
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3, called


class Replayed:
    """Times by replays of a graph of calls, each behind a refill of the cache, less a graph of the refills alone.

    Built on the current stream if that is not the default one, else on one of its own: a gradient is captured only on
    the stream of its forward pass.

    Args:
        run: what is captured; called once before.
        seconds: about how long a call takes.
    """

    def __init__(self, run: Callable[[], Any], seconds: float):
        self.run = run
        self.copies = max(1, min(COPIES, int(LONGEST_GRAPH / max(seconds, 1e-6))))
        self.refills = _refills(self.copies)
        self.calls, self.result = capture(run, self.copies, before=refill)
        self.warm: torch.cuda.CUDAGraph | None = None

    @property
    def how(self) -> str:
        return f"a graph of {self.copies}"

    def prove(self, check: Callable[[Any], None]) -> None:
        """Replays onto poisoned results: raises unless they are written anew and right."""
        outputs = [x for x in tree_leaves(self.result) if isinstance(x, torch.Tensor) and x.is_cuda]
        if not outputs:
            raise RuntimeError("no result on the device tells that the graph is not empty")
        with torch.no_grad():
            for x in outputs:
                x.fill_(float("nan") if x.is_floating_point() else 77)
        self.calls.replay()
        torch.cuda.synchronize()
        check(self.result)

    def sample(self) -> tuple[float, float]:
        """Seconds on the device and of the call."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        began = time.perf_counter()
        self.run()
        called = time.perf_counter() - began
        torch.cuda.synchronize()
        for graph, (begin, end) in ((self.refills, events[:2]), (self.calls, events[2:])):
            begin.record()
            graph.replay()
            end.record()
        events[3].synchronize()
        refills, calls = events[0].elapsed_time(events[1]), events[2].elapsed_time(events[3])
        return (calls - refills) * 1e-3 / self.copies, called

    def sample_warm(self) -> float:
        """Seconds of a call right behind another, with whatever the cache kept of its data."""
        if self.warm is None:
            self.warm, _ = capture(self.run, self.copies)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.warm.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self.copies


def capture(
    run: Callable[[], Any], copies: int = 1, before: Callable[[], Any] | None = None
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of so many calls, and the last one's result; called once outside before."""
    current, default = torch.cuda.current_stream(), torch.cuda.default_stream()
    stream = current if current != default else own_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        if before is not None:
            before()
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(copies):
            if before is not None:
                before()
            result = run()
    return graph, result


@cache
def _refills(copies: int) -> torch.cuda.CUDAGraph:
    return capture(refill, copies)[0]


@cache
def own_stream() -> torch.cuda.Stream:
    """The stream that is captured."""
    return torch.cuda.Stream()


@cache
def _other_data() -> torch.Tensor:
    size = 4 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.ones(max(size, 256 << 20) // 4, device="cuda")


def refill() -> None:
    """Fills the second-level cache with other data, read and not written: nothing of it is to be written back later."""
    _other_data().sum()


@cache
def _cycles_per_second() -> float:
    """Of the device's clock, as torch.cuda._sleep counts it."""
    cycles, times = 2_000_000, []
    for _ in range(3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return cycles / max(min(times), 1e-6)
