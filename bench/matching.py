"""Matching of a source and a target image, loss and gradient, against a plain loop in the released code's manner."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.plain_matching import PlainMatching
from bench.timing import Contender, compare
from simfast.matching import StuffInstanceMatching
from simfast.testing import DEVICES, STUFF, THINGS, Calls, smooth_labels

CHANNELS, CLASSES, ROWS, INSTANCES = 2048, 19, 50, 10
SOURCE, TARGET = (91, 161), (65, 129)  # stride 8 of 1280 x 720 and 1024 x 512
CASES = {
    "f32-contiguous": (torch.float32, torch.contiguous_format),
    "bf16-channels-last": (torch.bfloat16, torch.channels_last),
}

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # source features and labels, target features and labels
Result = tuple[Tensor, Tensor, Tensor]  # stuff loss, instance loss, gradient of their sum in the target features


def prototypes() -> Tensor:
    """What a class's features scatter around. [classes, C]."""
    return torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(0)).relu()


def make_inputs(dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> Inputs:
    inputs = []
    for seed, size in enumerate((SOURCE, TARGET)):
        labels = smooth_labels(1, *size, CLASSES, scale=16, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, CHANNELS, *size, generator=generator)
        features = (prototypes().t()[:, labels[0].long()][None] + 0.5 * noise).relu_()
        inputs += [features.to(device, dtype).contiguous(memory_format=memory_format), labels.to(device)]
    return tuple(inputs)


def make_head(device: str) -> nn.Linear:
    """A head that knows the classes, so that the gate lets most vectors pass."""
    head = nn.Linear(CHANNELS, CLASSES)
    centred = prototypes() - prototypes().mean(0)
    with torch.no_grad():
        head.weight.copy_(centred)
        head.bias.copy_(-(centred * prototypes()).sum(1) / 2)
    return head.requires_grad_(False).to(device)


def make_matching(ops: str, device: str) -> StuffInstanceMatching:
    """With every ring full and wrapped."""
    matching = StuffInstanceMatching(CHANNELS, STUFF, THINGS, ROWS, INSTANCES, "released", "full", ops)
    rings = torch.arange(len(matching.bank.num_rows)).repeat_interleave(matching.bank.sizes + 3)
    noise = torch.randn(len(rings), CHANNELS, generator=torch.Generator().manual_seed(2))
    matching.bank.write((prototypes()[STUFF + THINGS][rings] + 0.2 * noise).relu_(), rings)
    return matching.to(device)


def make_plain(head: nn.Module, device: str) -> PlainMatching:
    """With the same memory."""
    bank, rings, written = make_matching("reference", device).bank, {}, {}
    for k, c in enumerate(STUFF + THINGS):
        rings[c], written[c] = bank.rows(k, k + 1)[0].clone(), int(bank.written[k])
    return PlainMatching(STUFF, THINGS, INSTANCES, rings, written, head)


def runner(matching: StuffInstanceMatching, head: nn.Module, inputs: Inputs) -> Callable[[], Result]:
    source, source_labels, target, target_labels = inputs
    target = target.detach().requires_grad_()

    def run() -> Result:
        matching.remember(source, source_labels, head)
        stuff, instance = matching(target, target_labels, head)
        (gradient,) = torch.autograd.grad(stuff + instance, target)
        return stuff.detach(), instance.detach(), gradient

    return run


def plain_runner(head: nn.Module, inputs: Inputs, device: str) -> Callable[[], Result]:
    plain = make_plain(head, device)
    source, source_labels, target, target_labels = inputs
    target = target.detach().requires_grad_()

    def run() -> Result:
        plain.remember(source, source_labels)
        stuff, instance = plain(target, target_labels)
        (gradient,) = torch.autograd.grad(stuff + instance, target)
        return stuff.detach(), instance.detach(), gradient

    return run


def graph_runner(head: nn.Module, inputs: Inputs) -> Callable[[], Result]:
    """The fused call as a CUDA graph, with the memory that it began with."""
    matching = make_matching("fused", "cuda")
    before = {name: x.clone() for name, x in matching.state_dict().items()}
    run = runner(matching, head, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    matching.load_state_dict(before)

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def count(run: Callable[[], Result], device: str) -> tuple[dict[str, int], Result]:
    """Operators that compute and reads by the host in one call; on a GPU also launches and copies. And its result."""
    with Calls() as calls:
        result = run()
    counts = {"operators": len(calls.names), "host_reads": len(calls.host_reads)}
    if device == "cuda":
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run()
            torch.cuda.synchronize()
        on_gpu = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        counts["launches"] = sum(not name.startswith("Mem") for name in on_gpu)
        counts["copies_and_fills"] = sum(name.startswith("Mem") for name in on_gpu)
        counts["copies_to_host"] = sum(name.startswith("Memcpy DtoH") for name in on_gpu)
    return counts, result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def bench_matching(benchmark, case, device):
    if device == "cpu" and case != "f32-contiguous":
        pytest.skip("the plain loop takes minutes there")
    dtype, memory_format = CASES[case]
    inputs, head = make_inputs(dtype, memory_format, device), make_head(device)
    plain_counts, expected = count(plain_runner(head, inputs, device), device)
    # The plain loop rounds its products and averages to the features' dtype, ours are float32.
    rounding = 1e-4 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps

    def check(result: Result) -> None:
        for ours, plain in zip(result[:2], expected[:2], strict=True):
            assert plain > 0
            torch.testing.assert_close(ours, plain, rtol=rounding, atol=0)
        # A value that nearly equals the row's has either sign, by the rounding: a few in a million.
        wrong = ~torch.isclose(result[2], expected[2], rtol=rounding, atol=0)
        assert wrong.float().mean() < 2 * rounding, f"{int(wrong.sum())} of {wrong.numel()} gradients differ"

    ours = runner(make_matching("fused", device), head, inputs)
    if device == "cpu":
        contenders = [
            Contender("simfast, 1 thread", ours, check, threads=1),
            Contender("simfast, 2 threads", runner(make_matching("fused", device), head, inputs), check, threads=2),
        ]
    else:
        contenders = [
            Contender("simfast", ours, check, graph=False),
            Contender("simfast, CUDA graph", graph_runner(head, inputs), check, graph=False),
        ]
    contenders += [
        Contender("reference", runner(make_matching("reference", device), head, inputs), check, graph=False),
        Contender("plain loop", plain_runner(head, inputs, device), check, graph=False),
    ]
    source, _, target, _ = inputs
    rows = sum(make_matching("reference", "cpu").bank.num_rows)
    bytes_moved = (source.numel() + 2 * target.numel()) * source.element_size() + rows * CHANNELS * 4
    compare(benchmark, contenders, device, bytes_moved, rounds=11)
    for row, contender in zip(benchmark.extra_info["contenders"], contenders, strict=True):
        row |= plain_counts if contender.name == "plain loop" else count(contender.run, device)[0]
        assert row["host_reads"] == 0 or not contender.name.startswith("simfast")
