"""batch_norm_act: the reference's results and gradients, torch's own on the CPU, and what every op promises."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from simfast import ops, reference
from simfast.models.recomputed import norm_act_conv
from simfast.testing import DEVICES, needs_gpu

NAMES = ("x", "residual", "weight", "bias", "running_mean", "running_var")
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(shape=(2, 24, 5, 7), dtype=torch.float32, layout=torch.channels_last, device="cpu", seed=0):
    """x, residual, weight, bias, running mean and variance: leaves."""
    g = torch.Generator().manual_seed(seed)
    channels = shape[1]
    maps = [(torch.randn(shape, generator=g) * (2 - i) + i).to(dtype).contiguous(memory_format=layout) for i in (0, 1)]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = [torch.rand(channels, generator=g, dtype=kind) + 0.5 for _ in range(4)]
    x, residual, weight, bias, mean, var = (tensor.to(device) for tensor in (*maps, *vectors))
    return x, residual, weight, bias - 1, mean - 1, var


def called(op, tensors, residual, where=1, **options):
    """The output, the gradients of two consumers' sum in all that has one, and the running statistics.

    where: 0 where the output must not be asked about, as where rounding decides whether ReLU cuts.
    """
    x, added, weight, bias, mean, var = (tensor.clone() for tensor in tensors)
    leaves = [x, weight, bias] + [added] * residual
    for leaf in leaves:
        leaf.requires_grad_()
    y, again = op(x, mean, var, weight, bias, added if residual else None, twice=True, **options)
    g = torch.Generator().manual_seed(9)
    first, second = (torch.randn(x.shape, generator=g).to(y) * where for _ in range(2))
    gradients = torch.autograd.grad((y, again), leaves, (first, second))
    return [y.detach(), *gradients, mean, var]


# Of values near 1 and sums of them, in units of the largest: float32's sums, 11 and 8 bits of mantissa.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"act": "none"}, {"training": False}, {"cooperative": True}], ids=["relu", "none", "eval", "one"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_output_gradients_and_statistics_are_the_references(device, residual, options, dtype):
    for shape in ((2, 24, 5, 7), (1, 64, 91, 33), (2, 3, 1, 1)):
        tensors = make(shape, dtype, device=device)
        before = called(reference.batch_norm_act, tensors, residual, **options | {"act": "none"})[0]
        where = (before.abs() > 5 * TOLERANCE[dtype]).to(dtype)
        found, expected = (
            called(module.batch_norm_act, tensors, residual, where, **options) for module in (ops, reference)
        )
        for ours, exact in zip(found, expected, strict=True):
            scale = exact.double().abs().max().clamp(min=1)
            assert (ours.double() - exact.double()).abs().max() <= TOLERANCE[dtype] * scale
            assert ours.dtype == exact.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_a_cpu_its_output_is_what_modules_give_to_the_bit(layout, training, dtype):
    def plain(x, mean, var, weight, bias, residual, twice):
        y = F.batch_norm(x, mean, var, weight, bias, training)
        y = F.relu(y + residual if residual is not None else y, inplace=True)
        return y, y

    for residual in (False, True):
        tensors = make(dtype=dtype, layout=layout)
        found = called(ops.batch_norm_act, tensors, residual, training=training)
        expected = called(plain, tensors, residual)
        assert torch.equal(found[0], expected[0])
        for ours, theirs in zip(found[1:-2], expected[1:-2], strict=True):
            torch.testing.assert_close(ours, theirs)  # 1 / deviation, found from the variance
        assert found[0].stride() == expected[0].stride()
        assert all(map(torch.equal, found[-2:], expected[-2:]))


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_two_consumers_is_their_sum_and_of_one_its_own(device):
    x, residual, weight, bias, mean, var = make(device=device)
    x.requires_grad_(), residual.requires_grad_()

    def gradients(loss):
        return torch.autograd.grad(
            loss(*ops.batch_norm_act(x, mean, var, weight, bias, residual, twice=True)), (x, residual)
        )

    whole = gradients(lambda y, again: (3 * y).sum() + (y * y.detach()).sum())
    for loss in (
        lambda y, again: (3 * y).sum() + (again * y.detach()).sum(),
        lambda y, again: (3 * again).sum() + (again * y.detach()).sum(),
    ):
        for ours, expected in zip(gradients(loss), whole, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    y, again = ops.batch_norm_act(x, mean, var, weight, bias, residual, twice=True)
    assert y.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
def test_without_running_statistics_none_is_left(device):
    x, _, weight, bias, mean, var = make(device=device)
    first = ops.batch_norm_act(x, mean, var, weight, bias)
    assert torch.equal(ops.batch_norm_act(x, None, None, weight, bias), first)


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_of_a_product_stand_in_for_its_own(device):
    x, _, weight, bias, mean, var = make((2, 40, 9, 11), device=device)
    kernel = torch.randn(24, 40, 1, 1, generator=torch.Generator().manual_seed(1)).to(device) / 6
    out, *statistics = ops.conv1x1_statistics(x, kernel)
    vectors = [v[:24].contiguous() for v in (mean, var, weight, bias)]
    copies = [v.clone() for v in vectors]
    found = ops.batch_norm_act(out, *vectors, statistics=tuple(statistics))
    torch.testing.assert_close(found, ops.batch_norm_act(out, *copies), rtol=1e-5, atol=1e-5)
    for ours, expected in zip(vectors, copies, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    x, residual, weight, bias, mean, var = make((2, 3, 3, 2), torch.float64)

    def run(x, residual, weight, bias):
        return ops.batch_norm_act(x, mean.clone(), var.clone(), weight, bias, residual, training=training)

    leaves = [tensor.requires_grad_() for tensor in (x, residual, weight, bias)]
    assert torch.autograd.gradcheck(run, leaves)
    (gradient,) = torch.autograd.grad(run(*leaves).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    x, residual, weight, bias, mean, var = make(device=device)
    norm, check = (weight, bias, residual, True), torch.library.opcheck
    operators = torch.ops.simfast
    check(operators.batch_norm_act.default, (x, mean, var, *norm, 0.1, 1e-5, None, 0, False))
    check(operators.batch_norm_act.default, (x, None, None, weight, bias, None, False, 0.1, 1e-5, None, 0, True))
    check(operators.batch_norm_apply.default, (x, mean, var, *norm, 1e-5))
    backward = operators.batch_norm_act_backward.default
    for training in (True, False):
        check(backward, (residual, x, x, residual, mean, var, weight, bias, True, training, 1e-5, True, True, False))
        check(backward, (residual, None, x, None, mean, var, weight, bias, True, training, 1e-5, False, False, False))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole_running_statistics_included(device, training):
    def loss(x, residual, weight, bias, mean, var):
        y, again = ops.batch_norm_act(x.sin(), mean, var, weight, bias, residual, training=training, twice=True)
        return (y.exp() * 2 + again * residual).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((2, 8, 5, 7), (1, 8, 4, 4)):
        tensors, copies = make(shape, device=device), make(shape, device=device)
        for x, *_ in (tensors, copies):
            x.requires_grad_()
        found, expected = compiled(*tensors), loss(*copies)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(value, own[0])[0] for value, own in ((found, tensors), (expected, copies))]
        torch.testing.assert_close(*grads)
        assert all(map(torch.equal, tensors[4:], copies[4:]))


def test_a_convolution_whose_input_is_found_again_gives_the_same_and_keeps_x_alone():
    x, _, weight, bias, mean, var = make((1, 16, 20, 30))
    convolution = torch.nn.Conv2d(16, 8, 3, padding=2, dilation=2, bias=False)
    x.requires_grad_()
    runs = {
        "plain": lambda mean, var: convolution(ops.batch_norm_act(x, mean, var, weight, bias)),
        "low": lambda mean, var: norm_act_conv(x, convolution, mean, var, weight, bias, 0.1, 1e-5, False)[0],
    }
    results, kept = {}, {}
    for name, run in runs.items():
        own, maps = [mean.clone(), var.clone()], set()

        def note(tensor, maps=maps):
            maps |= {tensor.data_ptr()} if tensor.shape == x.shape else set()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = run(*own)
        results[name] = [y, *own, *torch.autograd.grad(y.square().sum(), (x, convolution.weight))]
        kept[name] = maps
    for ours, plain in zip(results["low"], results["plain"], strict=True):
        torch.testing.assert_close(ours, plain)
    assert all(map(torch.equal, results["low"][:3], results["plain"][:3]))
    assert kept["low"] == {x.data_ptr()}
    assert len(kept["plain"]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"x": torch.zeros(3, 8, 8)},
            r"x must be float32, float16 or bfloat16 \[B, C, H, W\].*got float32 \[3, 8, 8\]",
        ),
        ({"x": torch.zeros(2, 24, 5, 7, dtype=torch.int64)}, "x must be float32.*got int64"),
        ({"x": torch.zeros(1, 24, 1, 1), "residual": None}, "x must have more than one value a channel in training"),
        ({"running_var": None}, "running_mean and running_var must be given together.*a mean and no variance"),
        ({"running_mean": None, "running_var": None, "training": False}, ".* always in eval mode"),
        ({"weight": torch.ones(23)}, r"weight must be a contiguous float32 \[24\], got float32 \[23\]"),
        ({"bias": torch.ones(24, dtype=torch.float16)}, r"bias must be a contiguous float32 \[24\], got float16"),
        ({"residual": torch.zeros(2, 24, 5, 6)}, r"residual must be as x, float32 \[2, 24, 5, 7\], got .*5, 6"),
        ({"act": "gelu"}, "act must be relu or none, got 'gelu'"),
        (
            {"statistics": (torch.zeros(2, 3, 24), 70)},
            r"statistics must be float32 \[2, P, 24\].*stretches of 70 pixels",
        ),
        ({"statistics": (torch.zeros(2, 1, 24), 70), "training": False}, "statistics must be .*in training"),
    ],
)
def test_a_wrong_argument_is_named(change, said):
    with pytest.raises(ValueError, match=f"batch_norm_act: {said}"):
        ops.batch_norm_act(**dict(zip(NAMES, make(), strict=True)) | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 1.0}, "weight must be a tensor, got float"),
        ({"statistics": torch.zeros(2, 1, 24)}, "statistics must be a tensor and a number, got tensor"),
        ({"statistics": (None, 3)}, "statistics must be a tensor, got NoneType"),
    ],
)
def test_what_is_no_tensor_is_named(change, said):
    with pytest.raises(TypeError, match=f"batch_norm_act: {said}"):
        ops.batch_norm_act(**dict(zip(NAMES, make(), strict=True)) | change)


@pytest.mark.parametrize("device", DEVICES)
def test_no_images_give_no_gradient(device):
    x, residual, weight, bias, mean, var = (tensor.requires_grad_() for tensor in make((0, 24, 5, 7), device=device))
    ops.batch_norm_act(x, mean.detach(), var.detach(), weight, bias, residual, training=False).sum().backward()
    assert x.grad.shape == residual.grad.shape == (0, 24, 5, 7)
    assert not weight.grad.any()
    assert not bias.grad.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", ["relu", "none"])
def test_maps_of_any_strides_compile(act, device):
    x, residual, weight, bias, mean, var = make(device=device)
    wide = torch.randn(2, 24, 5, 14, device=device).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(ops.batch_norm_act, fullgraph=True)
    for map_ in (x.mT.contiguous().mT, wide[..., ::2]):
        found = []
        for op in (ops.batch_norm_act, compiled):
            leaves = [map_.detach().requires_grad_(), residual.detach().contiguous().requires_grad_()]
            y = op(leaves[0], mean.clone(), var.clone(), weight, bias, leaves[1], act)
            found.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
        for ours, expected in zip(*found, strict=True):
            torch.testing.assert_close(ours, expected)


def test_signature_is_the_references():
    ours, theirs = (inspect.signature(module.batch_norm_act) for module in (ops, reference))
    assert list(ours.parameters) == list(theirs.parameters)
    assert [p.default for p in ours.parameters.values()] == [p.default for p in theirs.parameters.values()]


@needs_gpu
def test_same_bits_in_one_launch_and_in_two_and_in_a_graph_without_a_sync():
    for dtype in (torch.float32, torch.bfloat16):
        for residual in (False, True):
            tensors = make((1, 256, 91, 161), dtype, device="cuda")
            two = called(ops.batch_norm_act, tensors, residual)
            torch.cuda.set_sync_debug_mode("error")
            try:
                one = called(ops.batch_norm_act, tensors, residual, cooperative=True)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(map(torch.equal, one, two))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = called(ops.batch_norm_act, tensors, residual, cooperative=True)
            for _ in range(3):
                graph.replay()
                assert all(map(torch.equal, found, two))
