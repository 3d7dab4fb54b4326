"""The matching of a step as a CUDA graph under torch's profiler: how many kernels, which, and the gaps in between."""

import collections
import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from bench import matching as bench
from bench.device_timing import capture, own_stream
from bench.gpu.part import Part, arguments
from bench.timing import summary
from simfast.testing import determinism

SHOWN = 40  # names of kernels in a row
SORTS = ("sort", "radix", "indexing_backward", "index_put")


def kernels(run: Callable[[], object], calls: int = 1) -> dict:
    """What the GPU runs in a call, by name with number and microseconds, longest first; mean gap in between."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    events = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in events)
    by_name: dict[str, list[float]] = collections.defaultdict(list)
    for start, end, name in spans:
        by_name[name[:120]].append(end - start)
    gaps = [max(later[0] - earlier[1], 0) for earlier, later in itertools.pairwise(spans)]
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return {
        "kernels": sum(not name.startswith("Mem") for _, _, name in spans) / calls,
        "copies_and_fills": sum(name.startswith("Mem") for _, _, name in spans) / calls,
        "busy_us": sum(end - start for start, end, _ in spans) / calls,
        "mean_gap_us": statistics.mean(gaps) if gaps else 0.0,
        "median_gap_us": statistics.median(gaps) if gaps else 0.0,
        "sorts": sorted({name[:60] for name in by_name if any(word in name.lower() for word in SORTS)})[:5],
        "kernels_by_name": [[name, len(times) / calls, sum(times) / calls] for name, times in longest[:SHOWN]],
    }


def one(part: Part, case: str, deterministic: bool, gate: bool) -> None:
    dtype, memory_format = bench.CASES[case]
    inputs, head = bench.make_inputs(dtype, memory_format, "cuda"), bench.make_head("cuda")
    with determinism(deterministic), torch.cuda.stream(own_stream()):
        module = bench.make_matching("fused", "cuda")
        module.gate = "released" if gate else "none"
        run = bench.runner(module, head, inputs)
        graph, _ = capture(run)
        times = []
        for _ in range(21):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(10):
                graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-4)
        found = kernels(graph.replay, 5)
    name = f"matching {case}{', gate' if gate else ''}{'' if deterministic else ', not deterministic'}"
    part.row(name, contender="simfast", **summary(times), timed_by="ten replays of a graph", **found)


def main() -> None:
    part = Part("matching", arguments(__doc__).parse_args())
    if part.needs_gpu():
        kinds = [("bf16-channels-last", True, True), ("bf16-channels-last", True, False)]
        kinds += [("bf16-channels-last", False, False), ("f32-contiguous", True, False)]
        part.each({f"{kind}": partial(one, part, *kind) for kind in kinds})
    part.end()


if __name__ == "__main__":
    main()
