"""A training step in its modes and precisions, against a plain loop in the released code's manner, in the same run.

On a GPU at the paper's size (ResNet-101, 1280x720 source and 1024x512 target images), on a CPU at a small one. The
contenders come one after the other, for two captured steps do not fit into a GPU beside each other; each begins with
the same weights and must give the plain loop's losses before it is timed.

    python -m bench.step --trace trace.json [--device cuda] [--mode graph] [--precision bf16] [--batch 1]

writes a profiler trace of one of them.
"""

import argparse
import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.plain_matching import PlainMatching
from bench.plain_step import PlainStep
from bench.roofline import bytes_moved
from bench.step_measures import forget, matrix_rate, measure, phases, wait
from bench.timing import copy_rate, judge
from simfast.config import Config
from simfast.matching import StuffInstanceMatching
from simfast.models import Discriminator, deeplab_v2
from simfast.testing import DEVICES, STUFF, THINGS, determinism, smooth_labels
from simfast.training.step import Trainer

# By how much a loss may differ from the plain loop's in the first steps. A GPU's fp32 convolutions are TF32. Where an
# arg-max differs, so does the region that is matched.
TOLERANCE = {"fp32": 0.02, "bf16": 0.1, "fp16": 0.05}
MATCHING_TOLERANCE = 0.3


TRAINED = {"cuda": 60, "cpu": 60}  # steps that the networks have behind them


@dataclasses.dataclass(frozen=True)
class Kind:
    mode: str
    precision: str
    deterministic: bool = True
    fuse: tuple[str, ...] = ("none",)
    memory: str = "usual"
    engines: str = "torch"
    benchmark: bool = False
    """Whether cuDNN measures its algorithms, of which determinism leaves some."""

    @property
    def name(self) -> str:
        parts = [f"simfast, {self.mode} {self.precision}"]
        parts += [] if self.fuse == ("none",) else [f"fused {' and '.join(self.fuse)}"]
        parts += [] if self.memory == "usual" else [f"{self.memory} memory"]
        parts += [] if self.engines == "torch" else [f"{self.engines} engines"]
        parts += ["benchmark"] if self.benchmark else []
        return ", ".join(parts + ([] if self.deterministic else ["not deterministic"]))


PARTS = ("norms", "cooperative", "products", "weights", "head", "maps")


def fused(mode: str, precision: str) -> list[Kind]:
    """A step with each part of `fuse` alone and with all of them, the plain one first; all are deterministic."""
    kind = Kind(mode, precision)
    alone = [dataclasses.replace(kind, fuse=(part,)) for part in PARTS]
    everything = dataclasses.replace(kind, fuse=("all",))
    return [kind, *alone, everything, dataclasses.replace(everything, memory="low")]


def chosen(mode: str, precision: str) -> list[Kind]:
    """Deterministic steps by who chooses how convolutions are computed."""
    kind = Kind(mode, precision)
    everything = dataclasses.replace(kind, fuse=("all",), engines="measured")
    return [dataclasses.replace(kind, engines="measured"), dataclasses.replace(kind, benchmark=True), everything]


# On a GPU every mode in bf16 and both ways in every precision, what matters most first; compiling takes minutes there,
# so it has its own case, and larger batches come last.
CASES = {
    "cpu": {
        "batch 1": (1, [Kind("eager", "fp32"), Kind("eager", "bf16")]),
        "batch 2": (2, [Kind("eager", "fp32")]),
        "batch 1, compiled": (1, [Kind("compile", "fp32"), Kind("eager", "fp32")]),
        "batch 1, fused": (1, fused("eager", "fp32")),
    },
    "cuda": {
        "batch 1": (
            1,
            [Kind("graph", "bf16"), Kind("graph", "bf16", False), Kind("eager", "bf16")]
            + [Kind(mode, precision) for precision in ("fp16", "fp32") for mode in ("graph", "eager")],
        ),
        "batch 1, fused": (1, fused("graph", "bf16") + chosen("graph", "bf16")),
        "batch 1, compiled": (1, [Kind("compile+graph", "bf16"), Kind("compile", "bf16"), Kind("graph", "bf16")]),
        "batch 2": (2, [Kind("graph", "bf16"), Kind("eager", "bf16")]),
        "batch 4": (4, [Kind("graph", "bf16"), Kind("eager", "bf16")]),
    },
}


def settings(device: str, batch: int, kind: Kind = Kind("eager", "fp32")) -> Config:
    sizes = {"source_size": (1280, 720), "target_size": (1024, 512), "arch": "resnet101"}
    if device == "cpu":
        sizes = {"source_size": (160, 96), "target_size": (128, 64), "arch": "resnet18"}
    how = {"step_mode": kind.mode, "precision": kind.precision, "deterministic": kind.deterministic}
    how |= {"fuse": kind.fuse, "memory": kind.memory, "engines": kind.engines}
    return Config(batch_size=batch, gate="released", fill_rule="full", lr=1e-4, **sizes, **how)


def make_inputs(device: str, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """A source batch with labels and a target batch, whose colours tell the class."""
    config, colours, images, labels = settings(device, batch), torch.tensor([11, 7, 13]), [], []
    for seed, (width, height) in enumerate((config.source_size, config.target_size)):
        label = smooth_labels(batch, height, width, scale=height // 8, ignore=0.05 * (seed == 0), seed=seed)
        g = torch.Generator().manual_seed(seed)
        image = label.long()[:, None] * colours.view(3, 1, 1) % 200 + torch.randint(
            50, (batch, 3, height, width), generator=g
        )
        images.append(image.byte().to(device))
        labels.append(label.to(device))
    return images[0], labels[0], images[1]


@cache
def networks(device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Trained on the source batch for a while, so that there are regions that the network gets right."""
    torch.manual_seed(0)
    config = settings(device, 1)
    model, discriminator = deeplab_v2(config.arch, 19), Discriminator(19)
    brief = dataclasses.replace(config, method="source-only", lr=0.02, head_lr_factor=0.01)
    trainer = Trainer(brief, model, None, None, "rgb", torch.device(device))
    source, labels, _ = make_inputs(device, 1)
    for step in range(TRAINED[device]):
        trainer.step(step, source, labels)
    return model.to(memory_format=torch.contiguous_format), discriminator.to(device)


def make_matching(config: Config, num_features: int, device: str) -> StuffInstanceMatching:
    """With every ring full and wrapped."""
    rows, most = config.stuff_rows, config.max_instances
    matching = StuffInstanceMatching(num_features, STUFF, THINGS, rows, most, config.gate, config.fill_rule)
    rings = torch.arange(len(matching.bank.num_rows)).repeat_interleave(matching.bank.sizes + 3)
    matching.bank.write(torch.randn(len(rings), num_features, generator=torch.Generator().manual_seed(2)).relu(), rings)
    return matching.to(device)


def make_trainer(device: str, batch: int, kind: Kind) -> Trainer:
    model, discriminator = copy.deepcopy(networks(device))
    config = settings(device, batch, kind)
    matching = make_matching(config, model.num_features, device)
    return Trainer(config, model, discriminator, matching, "rgb", torch.device(device))


def make_plain(device: str, batch: int) -> PlainStep:
    model, discriminator = copy.deepcopy(networks(device))
    config = settings(device, batch)
    bank = make_matching(config, model.num_features, device).bank
    rings = {c: bank.rows(k, k + 1)[0].clone() for k, c in enumerate(STUFF + THINGS)}
    written = {c: int(bank.written[k]) for k, c in enumerate(STUFF + THINGS)}
    matching = PlainMatching(STUFF, THINGS, config.max_instances, rings, written, model.classify)
    return PlainStep(config, model, discriminator, matching)


def runner(trainer: Trainer | PlainStep, inputs: tuple[Tensor, ...]) -> Callable[[int], dict[str, Any]]:
    return lambda step: trainer.step(step, *inputs)


def first_losses(run: Callable[[int], dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in run(step).items()} for step in range(3)]


def check(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    for step, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        for name, value in plain.items():
            allowed = MATCHING_TOLERANCE if name in ("stuff", "instance") else tolerance
            assert ours[name] == pytest.approx(value, rel=allowed, abs=1e-3), (step, name)


def plain_losses(device: str, batch: int, inputs: tuple[Tensor, ...]) -> tuple[list[dict[str, float]], int]:
    """What the plain loop's first steps lose, and the FLOP of one of its steps."""
    with determinism(False):
        run = runner(make_plain(device, batch), inputs)
        expected = first_losses(run)
        with FlopCounterMode(display=False) as counter:
            run(3)
    return expected, counter.get_total_flops()


def measure_plain(device: str, batch: int, inputs: tuple[Tensor, ...], flops: int) -> dict[str, Any]:
    forget(device)
    with determinism(False):
        run = runner(make_plain(device, batch), inputs)
        first_losses(run)
        return measure("plain loop, eager fp32", run, device, True, flops, batch)


def measure_kind(
    kind: Kind,
    device: str,
    batch: int,
    inputs: tuple[Tensor, ...],
    expected: list[dict[str, float]],
    flops: int,
) -> dict[str, Any]:
    """A row for one kind of step, once its first losses were found to be the plain loop's."""
    forget(device)
    with determinism(kind.deterministic), measured_algorithms(kind.benchmark):
        trainer = make_trainer(device, batch, kind)
        run = runner(trainer, inputs)
        check_losses = partial(check, expected=expected, tolerance=TOLERANCE[kind.precision])
        wrong = judge(check_losses, first_losses(run))  # wrong: no time
        row = measure(kind.name, run, device, kind.mode == "eager", flops, batch)
        row |= of_bytes(settings(device, batch, kind), row["device_ms"], device)
        if row["host_reads"]:
            wrong = judge(partial(must_not_read, kind), row["host_reads"])
        if kind.mode == "eager":
            row["phases_ms"] = phases(trainer, inputs, device)
    return row | ({"wrong": wrong} if wrong else {})


def of_bytes(config: Config, device_ms: float, device: str) -> dict[str, float]:
    """Bytes that a step moves by the rules of bench/roofline.py, the milliseconds of a copy of as many, their share."""
    moved = bytes_moved(config)
    floor = 1e3 * moved / copy_rate(device)
    return {"bytes": moved, "byte_floor_ms": floor, "share_of_byte_floor": floor / max(device_ms, 1e-9)}


@contextmanager
def measured_algorithms(wanted: bool) -> Iterator[None]:
    """Within it, cuDNN measures its algorithms if that is wanted, whatever determinism says of it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def must_not_read(kind: Kind, number: int) -> None:
    assert not number, f"{kind.name}: the host waited {number} times for the device in a step"


def pairs() -> list:
    for device in DEVICES:
        name, marks = (device, ()) if isinstance(device, str) else (device.values[0], device.marks)
        yield from (pytest.param(name, case, marks=marks, id=f"{case}-{name}") for case in CASES[name])


@pytest.mark.parametrize(("device", "case"), list(pairs()))
def bench_step(benchmark, device, case):
    batch, kinds = CASES[device][case]
    inputs = make_inputs(device, batch)
    networks(device)
    expected, flops = plain_losses(device, batch, inputs)
    assert min(expected[0].values()) > 0  # every loss takes part

    def report(row: dict[str, Any]) -> dict[str, Any]:
        return benchmark.row(row.pop("name"), **row)

    for kind in kinds:
        report(measure_kind(kind, device, batch, inputs, expected, flops))
    report(measure_plain(device, batch, inputs, flops))
    floor = 1e3 * flops / matrix_rate(device)
    benchmark.extra_info.update(
        device=device, batch=batch, flops=flops, matrix_rate=matrix_rate(device), floor_ms=floor,
        bytes=bytes_moved(settings(device, batch)), copy_rate=copy_rate(device),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="write a profiler trace (Chrome's format) here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", default="eager")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    inputs = make_inputs(arguments.device, arguments.batch)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (arguments.device == "cuda")
    with determinism(True):
        trainer = make_trainer(arguments.device, arguments.batch, Kind(arguments.mode, arguments.precision))
        first_losses(runner(trainer, inputs))
        with profile(activities=activities) as found:
            for step in range(3, 6):
                trainer.step(step, *inputs)
            wait(arguments.device)
    found.export_chrome_trace(str(arguments.trace))
    print(found.key_averages().table(sort_by=f"self_{arguments.device}_time_total", row_limit=30))


if __name__ == "__main__":
    main()
