"""conv1x1_statistics: torch's convolution within the error budget, exact statistics of it, torch's own gradient."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from simfast import ops, reference
from simfast.testing import DEVICES, FEATURE_LAYOUTS, assert_same, assert_within_budget, needs_gpu

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# images, channels in, height, width, channels out
SHAPES = {
    "one of each": (1, 1, 1, 1, 1),
    "one pixel": (1, 64, 1, 1, 32),
    "less than a chunk": (2, 33, 3, 7, 19),
    "chunks without a rest": (2, 64, 16, 16, 64),
    "chunks and a rest, odd channels": (3, 37, 13, 21, 131),
    "deep": (1, 1100, 9, 20, 300),
    "one column": (1, 16, 300, 1, 8),
}


def problem(images, depth, height, width, channels, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(images, depth, height, width, generator=g).relu().to(dtype)
    weight = (torch.randn(channels, depth, 1, 1, generator=g) / depth**0.5).to(dtype)
    return x.to(device).contiguous(memory_format=torch.channels_last), weight.to(device)


def check(x, weight):
    """Results within the error budget of what float64 gives, statistics of the very output."""
    out, partials, rows = ops.conv1x1_statistics(x, weight)
    exact = F.conv2d(x.detach().cpu().double(), weight.detach().cpu().double())
    honest = F.conv2d(x.detach().cpu(), weight.detach().cpu())
    assert out.dtype == x.dtype
    assert out.permute(0, 2, 3, 1).is_contiguous()
    if x.is_cuda and x.dtype == torch.float32:  # TF32
        torch.testing.assert_close(out.detach().cpu(), exact.float(), rtol=2**-9, atol=2**-9)
    else:
        assert_within_budget(out.detach(), exact, honest)
    pixels = out.detach().cpu().double().permute(0, 2, 3, 1).flatten(0, 2)
    assert partials.shape == (2, -(-len(pixels) // rows), len(weight))
    assert partials.dtype == torch.float32
    for p, chunk in enumerate(pixels.split(rows)):
        mean = chunk.mean(0)
        torch.testing.assert_close(partials[0, p].cpu(), mean.float(), rtol=1e-5, atol=1e-6)
        m2 = (chunk - mean).square().sum(0)
        torch.testing.assert_close(partials[1, p].cpu(), m2.float(), rtol=1e-4, atol=1e-6)
    return out, partials


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size_and_dtype(shape, dtype, device):
    check(*problem(*SHAPES[shape], dtype, device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", FEATURE_LAYOUTS)
def test_any_strides(layout, device):
    x, weight = problem(2, 20, 15, 11, 40, device=device)
    plain = ops.conv1x1_statistics(x, weight)
    wide = torch.full((40, 22, 1, 1), torch.nan, device=device)
    wide[:, 1:-1] = weight
    for got, want in zip(ops.conv1x1_statistics(FEATURE_LAYOUTS[layout](x), wide[:, 1:-1])[:2], plain[:2], strict=True):
        assert_same(got, want)


def test_chunks_worked_by_hand():
    values = torch.arange(130.0)  # 0..127, then 128 and 129
    x = values.reshape(1, 1, 10, 13)
    out, partials, rows = ops.conv1x1_statistics(x, torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
    assert rows == 128
    assert_same(out[0, 1], -2 * x[0, 0])
    assert_same(partials[0], torch.tensor([[63.5, -127.0], [128.5, -257.0]]))
    torch.testing.assert_close(partials[1], torch.tensor([[174752.0, 699008.0], [0.5, 2.0]]))  # (n^3 - n) / 12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_merged_chunks_are_the_statistics_of_all_pixels(dtype, device):
    x, weight = problem(2, 48, 19, 23, 40, dtype, device)
    out, partials, rows = ops.conv1x1_statistics(x, weight + 0.5)  # a mean that is large beside the spread
    pixels = out.double().permute(0, 2, 3, 1).flatten(0, 2)
    means, m2 = partials.double()
    counts = torch.tensor([len(chunk) for chunk in pixels.split(rows)], device=device)[:, None]
    mean = (counts * means).sum(0) / len(pixels)
    variance = (m2 + counts * (means - mean).square()).sum(0) / len(pixels)
    torch.testing.assert_close(mean, pixels.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, pixels.var(0, correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_is_that_of_torchs_convolution_and_of_out_alone(dtype, device):
    x, weight = problem(2, 24, 9, 17, 36, dtype, device)
    x.requires_grad_()
    weight.requires_grad_()
    out, partials, _ = ops.conv1x1_statistics(x, weight)
    assert out.requires_grad
    assert not partials.requires_grad
    g = torch.Generator().manual_seed(2)
    grad = torch.randn(out.shape, generator=g).to(dtype).to(device).contiguous(memory_format=torch.channels_last)
    got = torch.autograd.grad(out, (x, weight), grad)
    want = torch.autograd.grad(F.conv2d(x, weight), (x, weight), grad)
    for a, b in zip(got, want, strict=True):
        assert a.abs().sum() > 0
        assert_same(a, b)


@pytest.mark.parametrize("asked", [(True, False), (False, True), (False, False)], ids=str)
def test_only_the_gradients_that_are_asked_for_are_computed(asked):
    x, weight = problem(1, 5, 4, 6, 3)
    x.requires_grad_(asked[0])
    weight.requires_grad_(asked[1])
    out = ops.conv1x1_statistics(x, weight)[0]
    assert out.requires_grad == any(asked)
    if any(asked):
        out.sum().backward()
    assert (x.grad is not None, weight.grad is not None) == asked


def test_gradcheck():
    x, weight = (t.double().requires_grad_() for t in problem(2, 3, 2, 3, 4))
    assert torch.autograd.gradcheck(lambda x, w: ops.conv1x1_statistics(x, w)[0], (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: ops.conv1x1_statistics(x, w)[0], (x, weight))
    assert ops.conv1x1_statistics(x, weight)[1].dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_in_every_run_and_in_poisoned_memory(device):
    x, weight = problem(2, 130, 19, 23, 70, torch.bfloat16, device)
    first = ops.conv1x1_statistics(x, weight)[:2]
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what a kernel gets uninitialised with NaN
    try:
        again = ops.conv1x1_statistics(x, weight)[:2]
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    arguments = problem(1, 12, 9, 20, 14, device=device)
    plain = ops.conv1x1_statistics(*arguments)[:2]
    with torch.autocast(device, torch.bfloat16):
        for got, want in zip(ops.conv1x1_statistics(*arguments)[:2], plain, strict=True):
            assert_same(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    operator = torch.ops.simfast.conv1x1_statistics.default
    for shape in ((2, 6, 9, 20, 7), (1, 1, 1, 1, 1), (1, 3, 128, 1, 1)):
        x, weight = problem(*shape, device=device)
        torch.library.opcheck(operator, (x, weight))
        torch.library.opcheck(operator, (x.contiguous().requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_for_two_sizes(device):
    def loss(x, weight):
        out, partials, rows = ops.conv1x1_statistics(x, weight)
        return (out.float() ** 2).sum() + partials.sum() / rows

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((2, 6, 9, 20, 7), (1, 6, 30, 21, 7)):
        x, weight = problem(*shape, device=device)
        x.requires_grad_()
        got, want = compiled(x, weight), loss(x, weight)
        assert_same(got.detach(), want.detach())
        grads = [torch.autograd.grad(y, x)[0] for y in (got, want)]
        assert_same(*grads)
        assert grads[0].abs().sum() > 0


@needs_gpu
def test_without_tf32_float32_is_float32():
    x, weight = problem(1, 512, 30, 40, 96, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        out = ops.conv1x1_statistics(x, weight)[0]
    assert_within_budget(out, F.conv2d(x.cpu().double(), weight.cpu().double()), F.conv2d(x.cpu(), weight.cpu()))


@needs_gpu
def test_runs_without_a_sync_and_in_a_cuda_graph():
    x, weight = problem(1, 256, 91, 161, 64, torch.bfloat16, "cuda")
    x.requires_grad_()

    def step():
        out, partials, _ = ops.conv1x1_statistics(x, weight)
        return out, partials, torch.autograd.grad(out.float().square().sum(), x)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (5, 6):
        for into, new in zip((x, weight), problem(1, 256, 91, 161, 64, torch.bfloat16, seed=seed), strict=True):
            into.data.copy_(new)
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            assert_same(got, want)


def test_signature_is_the_references():
    assert inspect.signature(ops.conv1x1_statistics) == inspect.signature(reference.conv1x1_statistics)


X, WEIGHT = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], WEIGHT), ValueError, r"x must be .*\[B, K, H, W\] .*, got float32 \[3, 4, 5\]"),
        ((X.int(), WEIGHT), ValueError, r"x must be a non-empty float32.*, got int32"),
        ((X[:, :, :0], WEIGHT), ValueError, r"x must be a non-empty .*, got float32 \[2, 3, 0, 5\]"),
        ((X, WEIGHT.half()), ValueError, r"weight must be float32 \[N, 3, 1, 1\] .*, got float16"),
        ((X, WEIGHT[:, :2]), ValueError, r"weight must be .*\[N, 3, 1, 1\] .*, got float32 \[6, 2, 1, 1\]"),
        ((X, WEIGHT[:0]), ValueError, r"weight must be .*N at least 1, got float32 \[0, 3, 1, 1\]"),
        ((X, WEIGHT.expand(6, 3, 3, 3)), ValueError, r"weight must be .*got float32 \[6, 3, 3, 3\]"),
        ((X, WEIGHT.tolist()), TypeError, r"weight must be a tensor, got list"),
        ((X.to("meta"), WEIGHT), ValueError, r"weight must be on x's device meta, got cpu"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^conv1x1_statistics: {message}"):
        ops.conv1x1_statistics(*arguments)
