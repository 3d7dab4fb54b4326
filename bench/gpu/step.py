"""The training step at the paper's size, kind by kind: 30 steps each, each row on disk before the next one is begun.

Every kind must first lose what the plain loop loses. The networks that all of them begin with, and those losses, are
made once and kept in the scratch folder for the later parts of the same run.
"""

import time
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench import step as bench
from bench import step_measures
from bench.device_timing import Replayed, own_stream
from bench.gpu.matching import kernels
from bench.gpu.part import Part, arguments
from bench.roofline import bytes_moved
from bench.step import CASES, Kind, chosen, first_losses, fused, make_inputs, make_trainer, measure_kind, runner
from bench.step_measures import forget, matrix_rate
from bench.timing import copy_rate, needs, summary

GROUPS = {
    "first": [Kind("graph", "bf16"), Kind("graph", "bf16", False)],
    "more": [Kind("graph", "fp16"), Kind("eager", "bf16"), Kind("graph", "fp32")],
    "fused": fused("graph", "bf16")[:6],
    "fused-all": fused("graph", "bf16")[6:] + chosen("graph", "bf16"),
    "compile": [Kind("compile+graph", "bf16"), Kind("compile", "bf16")],
}
# Of the convolutions alone: in and out channels, kernel, stride, dilation, height, width.
CONVOLUTIONS = {
    "1x1, 1024 to 256": (1024, 256, 1, 1, 1, 91, 161),
    "1x1, 512 to 2048": (512, 2048, 1, 1, 1, 91, 161),
    "3x3, 256, dilation 2": (256, 256, 3, 1, 2, 91, 161),
    "3x3, 512, dilation 4": (512, 512, 3, 1, 4, 91, 161),
    "head, 3x3, 2048 to 19, dilation 6": (2048, 19, 3, 1, 6, 91, 161),
    "head, 3x3, 2048 to 19, dilation 24": (2048, 19, 3, 1, 24, 91, 161),
    "D's first, 4x4/2, 19 to 64": (19, 64, 4, 2, 1, 720, 1280),
    "D's first, 4x4/2, 24 to 64": (24, 64, 4, 2, 1, 720, 1280),
}


def case_of(device: str, batch: int) -> str:
    config = bench.settings(device, batch)
    sizes = " and ".join(f"{width}x{height}" for width, height in (config.source_size, config.target_size))
    return f"step, {config.arch}, {sizes}, batch {batch}"


def prepare(part: Part, batch: int = 1) -> tuple[tuple[Tensor, ...], list[dict[str, float]], int]:
    """Inputs, the losses of the first steps that every kind must have, and FLOP of a step."""
    device, kept = part.device, part.scratch / f"step-{batch}.pt"
    inputs, networks = make_inputs(device, batch), part.scratch / "networks.pt"
    began = time.monotonic()
    if networks.exists():
        with_weights(networks, device)
    else:
        torch.save([network.state_dict() for network in bench.networks(device)], networks)
    if kept.exists():
        expected, flops = torch.load(kept)
    elif needs("skimage") is None:
        expected, flops = bench.plain_losses(device, batch, inputs)
    else:  # the plain loop labels with scikit-image: the reference ops do the same
        with bench.determinism(False):
            run = runner(make_trainer(device, batch, Kind("eager", "fp32")), inputs)
            expected = first_losses(run)
            with FlopCounterMode(display=False) as counter:
                run(3)
        flops = counter.get_total_flops()
    torch.save((expected, flops), kept)
    part.row("prepared", seconds=time.monotonic() - began, losses=expected[0], flops=flops)
    return inputs, expected, flops


def with_weights(file, device: str) -> None:
    """Makes bench.networks give what is in the file, instead of training it again."""
    config = bench.settings(device, 1)
    found = bench.deeplab_v2(config.arch, 19).to(device), bench.Discriminator(19).to(device)
    for network, state in zip(found, torch.load(file, map_location=device), strict=True):
        network.load_state_dict(state)
    bench.networks = lambda _: found


def kinds(part: Part, batch: int, wanted: list[Kind]) -> None:
    if batch > 1 and needs("skimage") is not None:
        part.row(case_of(part.device, batch), skipped="no scikit-image for the plain loop")
        return
    inputs, expected, flops = prepare(part, batch)
    moved = bytes_moved(bench.settings(part.device, batch))
    info = {
        "bytes": moved,
        "copy_rate": copy_rate(part.device),
        "device": part.device,
        "batch": batch,
        "flops": flops,
        "matrix_rate": matrix_rate(part.device),
    }
    part.row(case_of(part.device, batch), info=info | {"floor_ms": 1e3 * flops / info["matrix_rate"]})

    def one(kind: Kind) -> None:
        row = measure_kind(kind, part.device, batch, inputs, expected, flops)
        part.row(case_of(part.device, batch), contender=row.pop("name"), **row)

    part.each({f"{kind.name}, batch {batch}": partial(one, kind) for kind in wanted})


def plain(part: Part) -> None:
    inputs, _, flops = prepare(part)
    row = bench.measure_plain(part.device, 1, inputs, flops)
    part.row(case_of(part.device, 1), contender=row.pop("name"), **row)


def profiled(part: Part) -> None:
    """The longest kernels of a captured step, by name, and how busy the device is."""
    inputs, _, _ = prepare(part)
    for kind in GROUPS["first"]:
        forget(part.device)
        with bench.determinism(kind.deterministic):
            run = runner(make_trainer(part.device, 1, kind), inputs)
            first_losses(run)
            part.row(f"kernels of {kind.name}", **kernels(lambda run=run: run(3), 3))


def convolutions(part: Part) -> None:
    """Forward, and forward with both gradients, bf16, channels-last, each alone."""
    for deterministic in (True, False):
        for name, shape in CONVOLUTIONS.items():
            with bench.determinism(deterministic), torch.cuda.stream(own_stream()):
                one_convolution(part, f"{name}{'' if deterministic else ', not deterministic'}", *shape)


def one_convolution(part: Part, name: str, inputs, outputs, kernel, stride, dilation, height, width) -> None:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel - 1) // 2, dilation, bias=False).cuda()
    layer = layer.to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(1, inputs, height, width, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn_like(layer(x))

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x), (x, layer.weight), grad)

    times = {}
    for what, run in (("forward", lambda: layer(x).detach()), ("forward and backward", both)):
        replayed = Replayed(run, 2e-4)
        times[what] = [replayed.sample()[0] for _ in range(7)]
    flops = 2 * grad.numel() * inputs * kernel * kernel
    for (what, taken), factor in zip(times.items(), (1, 3), strict=True):
        found = summary(taken)
        tflops = factor * flops / max(found["device_ms"], 1e-6) / 1e9
        part.row(f"convolution, {name}", contender=what, **found, tflops=tflops, timed_by=replayed.how)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--what", choices=(*GROUPS, "plain", "batches", "profile", "convolutions"), default="first")
    asked = parser.parse_args()
    part = Part(f"step-{asked.what}", asked)
    if part.device == "cpu" and asked.what == "first":
        bench.TRAINED["cpu"] = 3
        step_measures.STEPS["cpu"] = step_measures.SAMPLES["cpu"] = 1
        kinds(part, 1, CASES["cpu"]["batch 1"][1][:1])
    elif part.needs_gpu():
        if asked.what in GROUPS:
            kinds(part, 1, GROUPS[asked.what])
        elif asked.what == "batches":
            for batch in (2, 4):
                part.each({f"batch {batch}": partial(kinds, part, batch, [Kind("graph", "bf16")])})
        else:
            run = {"plain": plain, "profile": profiled, "convolutions": convolutions}[asked.what]
            part.each({asked.what: partial(run, part)})
    part.end()


if __name__ == "__main__":
    main()
