"""What bench/step.py measures of a training step: time, phases, host reads, launches, memory, the floor."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from simfast.testing import Calls

if TYPE_CHECKING:  # it needs what opens pictures; the smoke of the ops does not
    from simfast.training.step import Trainer

STEPS = {"cuda": 10, "cpu": 3}  # of a sample
SAMPLES = {"cuda": 3, "cpu": 5}


def step_times(run: Callable[[int], Any], device: str) -> tuple[list[float], list[float]]:
    """Seconds a step on the device's clock, and of the host's (CPU: of all threads' processor time)."""
    steps, times, host = STEPS[device], [], []
    for sample in range(SAMPLES[device]):
        wait(device)
        began, busy = time.perf_counter(), time.process_time()
        for step in range(steps):
            run(3 + sample * steps + step)
        called = time.perf_counter() - began
        wait(device)
        times.append((time.perf_counter() - began) / steps)
        host.append((called if device == "cuda" else time.process_time() - busy) / steps)
    return times, host


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@cache
def matrix_rate(device: str) -> float:
    """FLOP a second of a large matrix product: bf16 on a GPU, float32 on a CPU; the best of ten."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        times.append((time.perf_counter() - began) / 10)
    return 2 * size**3 / max(min(times), 1e-9)


def phases(trainer: "Trainer", inputs: tuple[Tensor, ...], device: str) -> dict[str, float]:
    """Milliseconds of the phases of an eager step, forward and backward; of matching the forward part, which source and
    target then do not count. Medians of five steps."""
    taken: dict[str, list[float]] = {}

    def timed(name: str, function: Callable) -> Callable:
        def call(*arguments):
            wait(device)
            began = time.perf_counter()
            result = function(*arguments)
            wait(device)
            taken.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
            return result

        return call

    parts = {
        "source": (trainer, "_source_losses"),
        "target": (trainer, "_target_losses"),
        "D": (trainer, "_discriminator_loss"),
        "optimiser": (trainer.optimizers, "step"),
    }
    for name, (owner, method) in parts.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    matching = trainer.matching
    matching.remember, matching.forward = timed("remember", matching.remember), timed("match", matching.forward)
    for step in range(6):
        trainer.step(step, *inputs)
    found = {name: statistics.median(times[1:]) for name, times in taken.items()}
    found["source"] -= found["remember"]
    found["target"] -= found["match"]
    return {**{name: found[name] for name in parts}, "matching": found["remember"] + found["match"]}


def host_reads(run: Callable[[int], Any], device: str, eager: bool) -> int | None:
    """How often the host waits for the device in one step; None where a CPU cannot tell."""
    if device == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            run(0)
            torch.cuda.set_sync_debug_mode("default")
        # Not any that speaks of synchronizing: torch also warns that this mode is a prototype.
        return sum("called a synchronizing" in str(warning.message) for warning in caught)
    if not eager:
        return None
    with Calls() as calls:
        run(0)
    return len(calls.host_reads)


def launches(run: Callable[[int], Any]) -> dict[str, int]:
    """Kernels that one step runs on the GPU, and launches by the host that this takes; a graph is one launch."""
    wait("cuda")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run(0)
        wait("cuda")
    names = [e.name for e in found.events() if e.device_type != torch.autograd.DeviceType.CUDA]
    kernels = [e.name for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "kernels": sum(not name.startswith("Mem") for name in kernels),
        "host_launches": sum(name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")) for name in names),
    }


def measure(name: str, run: Callable[[int], Any], device: str, eager: bool, flops: float, batch: int) -> dict[str, Any]:
    times, host = step_times(run, device)
    middle = statistics.median(times)
    row = {
        "name": name,
        "device_ms": middle * 1e3,
        "fastest_ms": min(times) * 1e3,
        "slowest_ms": max(times) * 1e3,
        "samples": len(times),
        "call_ms" if device == "cuda" else "processor_ms": statistics.median(host) * 1e3,
        "steps_per_second": 1 / max(middle, 1e-9),
        "pairs_per_second": batch / max(middle, 1e-9),
        "share_of_matrix_rate": flops / max(middle, 1e-9) / matrix_rate(device),
        "host_reads": host_reads(run, device, eager),
    }
    if device == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        row["reserved_mib"] = torch.cuda.max_memory_reserved() / 2**20
        row |= launches(run)
    return row


def forget(device: str) -> None:
    """Frees what nothing refers to, cycles too (a captured step is one), and counts the peak from here on."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
