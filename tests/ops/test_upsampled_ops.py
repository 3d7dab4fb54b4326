"""upsampled_cross_entropy and upsampled_softmax: within the error budget of float64, in maps that D reads fast."""

import inspect

import pytest
import torch

from simfast import ops, reference
from simfast.testing import DEVICES, FEATURE_LAYOUTS, LABEL_LAYOUTS, assert_same, assert_within_budget, needs_gpu

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# Feature size, label size: whole numbers of pixels between samples or not, one sample, one pixel, fewer pixels than
# samples, more pixels than a tile.
SIZES = [
    *(((9, 17), (65, 129)), ((9, 17), (70, 131)), ((3, 4), (100, 90)), ((1, 1), (1, 1)), ((1, 3), (32, 33))),
    *(((4, 1), (9, 2)), ((4, 4), (4, 4)), ((5, 3), (2, 1)), ((13, 17), (7, 5)), ((2, 2), (1, 1))),
]


def make(small=(5, 6), large=(33, 41), num_classes=7, images=2, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(images, num_classes, *small, generator=g)).to(dtype)
    labels = torch.randint(0, num_classes, (images, *large), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return logits.to(device), labels.to(torch.uint8).to(device)


def loss_and_gradient(function, logits, *arguments):
    """loss, gradient of 3 * loss, maps."""
    logits = logits.detach().requires_grad_()
    loss, maps = function(logits, *arguments)
    return loss.detach(), torch.autograd.grad(3 * loss, logits)[0], maps


def softmax_and_gradient(function, logits, size, dtype):
    logits = logits.detach().requires_grad_()
    maps = function(logits, size, dtype)
    grad = torch.randn(maps.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return maps.detach(), torch.autograd.grad(maps, logits, grad.to(maps))[0]


def check(logits, labels, map_dtype=torch.float32, weights=None):
    found = loss_and_gradient(ops.upsampled_cross_entropy, logits, labels, 255, map_dtype, weights)
    exact = loss_and_gradient(reference.upsampled_cross_entropy, logits.double(), labels, 255, torch.float64, weights)
    honest = loss_and_gradient(reference.upsampled_cross_entropy, logits.float(), labels, 255, torch.float32, weights)
    for ours, true, plain in zip(found, exact, honest, strict=True):
        within(ours, true, plain)
    assert found[1].dtype == logits.dtype
    return found


def check_softmax(logits, size, dtype=torch.float32):
    found = softmax_and_gradient(ops.upsampled_softmax, logits, size, dtype)
    exact = softmax_and_gradient(reference.upsampled_softmax, logits.double(), size, torch.float64)
    honest = softmax_and_gradient(reference.upsampled_softmax, logits.float(), size, torch.float32)
    # The gradient that comes back is of the maps' dtype: a rounding of each of its values.
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 0
    within(found[0], exact[0], honest[0])
    within(found[1], exact[1], honest[1] + rounding * exact[1].abs().max())
    return found


def within(ours, true, plain):
    """Within the budget of the others', or of four roundings of a value between 0 and 1 where theirs are exact."""
    true = true.double()
    assert_within_budget(ours, true, true + (plain.double() - true).abs().max().clamp(min=2**-23))


@pytest.mark.parametrize("device", DEVICES)
def test_an_answer_worked_by_hand(device):
    logits = torch.tensor([[0.0, 2.0], [0.0, 0.0]], device=device).reshape(1, 2, 1, 2)
    labels = torch.tensor([[[0, 1, 255]]], device=device)
    loss, maps = ops.upsampled_cross_entropy(logits, labels, map_dtype=torch.float32)
    p = torch.tensor([0.0, 1.0, 2.0]).sigmoid()  # of class 0, whose logit is 0, 1, 2
    torch.testing.assert_close(loss.cpu(), -(p[0].log() + (1 - p[1]).log()) / 2)
    torch.testing.assert_close(maps[0, :2, 0].cpu(), torch.stack([p, 1 - p]))
    assert maps.shape == (1, 8, 1, 3)
    assert not maps[:, 2:].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("small", "large"), SIZES, ids=str)
def test_any_size(small, large, device):
    logits, labels = make(small, large, device=device)
    _, _, maps = check(logits, labels)
    found, _ = check_softmax(logits, large)
    torch.testing.assert_close(maps, found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_classes", [1, 2, 8, 19, 40, 150])
def test_any_number_of_classes(num_classes, device):
    logits, labels = make(num_classes=num_classes, device=device)
    _, _, maps = check(logits, labels)
    assert maps.shape[1] == -(-num_classes // 8) * 8
    assert maps.is_contiguous(memory_format=torch.channels_last)
    found, _ = check_softmax(logits, labels.shape[1:])
    for x in (maps, found):
        assert not x[:, num_classes:].any()
        torch.testing.assert_close(x.sum(1), torch.ones_like(x[:, 0]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("map_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_two_dtypes(dtype, map_dtype, device):
    logits, labels = make(num_classes=19, dtype=dtype, device=device)
    assert check(logits, labels, map_dtype)[2].dtype == map_dtype
    assert check_softmax(logits, labels.shape[1:], map_dtype)[0].dtype == map_dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", FEATURE_LAYOUTS)
def test_any_layout_of_the_logits(layout, device):
    logits, labels = make(num_classes=19, device=device)
    views = FEATURE_LAYOUTS[layout](logits)
    _, gradient, _ = check(views, labels)
    assert gradient.stride() == torch.empty_like(views).stride()
    check_softmax(views, labels.shape[1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
def test_any_layout_and_dtype_of_the_labels(layout, device):
    logits, labels = make(device=device)
    expected = loss_and_gradient(ops.upsampled_cross_entropy, logits, labels)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        found = loss_and_gradient(ops.upsampled_cross_entropy, logits, LABEL_LAYOUTS[layout](labels.to(dtype)))
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)  # on the CPU added in memory's order
        assert_same(found[1], expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_weights_are_factors_of_pixels(device):
    logits, labels = make(device=device)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)).to(device)
    check(logits, labels, weights=weights)
    check(logits, labels, weights=weights.mT.contiguous().mT)
    ones = check(logits, labels, weights=torch.ones_like(weights))
    for got, want in zip(ones, check(logits, labels), strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_ignored_counts_for_nothing(device):
    logits, labels = make(device=device)
    loss, gradient, _ = loss_and_gradient(ops.upsampled_cross_entropy, logits, torch.full_like(labels, 255))
    assert loss == 0
    assert not gradient.any()
    other = labels.long().where(labels != 255, -100)
    expected = loss_and_gradient(ops.upsampled_cross_entropy, logits, labels)
    found = loss_and_gradient(ops.upsampled_cross_entropy, logits, other, -100)
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_a_number_to_ignore_may_be_none_of_the_labels_dtype(device):
    logits = make(device=device)[0].repeat(1, 7, 1, 1)  # 49 classes; 44 is 300 in uint8
    labels = torch.full((len(logits), 9, 8), 44, dtype=torch.uint8, device=device)
    expected = loss_and_gradient(reference.upsampled_cross_entropy, logits, labels)[0]
    for ignore in (300, 44 - 256):
        found = loss_and_gradient(ops.upsampled_cross_entropy, logits, labels, ignore)[0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", [ops.upsampled_cross_entropy, reference.upsampled_cross_entropy])
def test_the_weight_of_an_ignored_pixel_is_not_looked_at(op, device):
    logits, labels = make(device=device)
    weights = torch.ones(labels.shape, device=device)
    poisoned = weights.where(labels != 255, torch.nan)
    assert poisoned.isnan().any()
    found, expected = (loss_and_gradient(op, logits, labels, 255, None, w) for w in (poisoned, weights))
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1])


def test_a_label_that_is_no_class_is_named_on_the_cpu():
    logits, labels = make()
    labels[1, 2, 3] = 7
    for op in (ops.upsampled_cross_entropy, reference.upsampled_cross_entropy):
        with pytest.raises(ValueError, match=r"^upsampled_cross_entropy: labels must be in \[0, 7\) or 255, got 7$"):
            op(logits, labels)


@needs_gpu
def test_a_label_that_is_no_class_is_nan_on_a_gpu():
    logits, labels = make(device="cuda")
    for wrong in (7, 8, 254, -1, 2**32):
        other = labels.long()
        other[1, 2, 3] = wrong
        loss, gradient, _ = loss_and_gradient(ops.upsampled_cross_entropy, logits, other)
        assert loss.isnan()
        assert gradient.isnan().any()


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_of_label_size_is_kept_for_backward(device):
    logits, labels = make(small=(3, 4), large=(300, 400), num_classes=19, device=device)
    logits.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        ops.upsampled_cross_entropy(logits, labels, map_dtype=torch.float32)
        ops.upsampled_softmax(logits, (300, 400))
    assert len(kept) == 4
    assert max(kept) <= 4 * 24 * len(logits) * 12


@pytest.mark.parametrize("device", DEVICES)
def test_maps_are_detached_and_no_gradient_is_found_where_none_is_wanted(device):
    logits, labels = make(device=device)
    loss, maps = ops.upsampled_cross_entropy(logits.requires_grad_(), labels, map_dtype=torch.float32)
    assert loss.requires_grad
    assert not maps.requires_grad
    with torch.no_grad():
        again, none = ops.upsampled_cross_entropy(logits, labels)
    assert none is None
    assert_same(again, loss.detach())


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_in_every_run_and_in_poisoned_memory(device):
    logits, labels = make(num_classes=19, device=device)
    first = [*check(logits, labels), *check_softmax(logits, (50, 60))]
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what a kernel gets uninitialised with NaN
    try:
        again = [*check(logits, labels), *check_softmax(logits, (50, 60))]
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_one_image_of_a_batch_equals_itself_alone(device):
    logits, labels = make(images=3, device=device)
    whole = softmax_and_gradient(ops.upsampled_softmax, logits, (33, 41), torch.float32)[0]
    for b in range(3):
        alone = ops.upsampled_softmax(logits[b : b + 1], (33, 41))
        torch.testing.assert_close(alone, whole[b : b + 1], rtol=1e-6, atol=1e-7)
    losses = [ops.upsampled_cross_entropy(logits[b : b + 1], labels[b : b + 1])[0] for b in range(3)]
    counts = (labels != 255).sum((1, 2))
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / counts.sum()
    torch.testing.assert_close(ops.upsampled_cross_entropy(logits, labels)[0], expected)


def test_gradcheck():
    logits, labels = make(small=(3, 2), large=(5, 6), num_classes=3, dtype=torch.float64)
    weights = torch.rand(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    for arguments in ((labels,), (labels, 255, None, weights)):
        assert torch.autograd.gradcheck(lambda x, a=arguments: ops.upsampled_cross_entropy(x, *a)[0], logits)
    assert torch.autograd.gradcheck(lambda x: ops.upsampled_softmax(x, (5, 6), torch.float64), logits)


def test_second_derivative_is_refused():
    logits, labels = make()
    logits.requires_grad_()
    for op, result in (
        ("upsampled_cross_entropy", ops.upsampled_cross_entropy(logits, labels)[0] ** 2),
        ("upsampled_softmax", ops.upsampled_softmax(logits, (9, 9)).square().sum()),
    ):
        (grad,) = torch.autograd.grad(result, logits, create_graph=True)
        with pytest.raises(RuntimeError, match=f"^{op}: can be differentiated once"):
            grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    logits, labels = make(device=device)
    plain = [*ops.upsampled_cross_entropy(logits, labels, 255, torch.float32), ops.upsampled_softmax(logits, (9, 8))]
    with torch.autocast(device, torch.bfloat16):
        found = [
            *ops.upsampled_cross_entropy(logits, labels, 255, torch.float32),
            ops.upsampled_softmax(logits, (9, 8)),
        ]
    for got, want in zip(found, plain, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    logits, labels = make(device=device)
    weights = torch.ones(labels.shape, device=device)
    operators = torch.ops.simfast
    for x, w, map_dtype, differentiable in (
        (logits.clone().requires_grad_(), weights, torch.bfloat16, True),
        (logits.contiguous(memory_format=torch.channels_last).requires_grad_(), None, None, True),
        (logits, None, torch.float32, False),
    ):
        arguments = x, labels, w, 255, map_dtype, differentiable
        torch.library.opcheck(operators.upsampled_cross_entropy.default, arguments)
    _, _, shares, count = operators.upsampled_cross_entropy.default(logits, labels, None, 255, None, True)
    grad = torch.ones((), device=device)
    torch.library.opcheck(operators.upsampled_cross_entropy_backward.default, (grad, shares, count, logits))
    torch.library.opcheck(
        operators.upsampled_softmax.default, (logits.clone().requires_grad_(), 33, 41, torch.bfloat16)
    )
    maps = ops.upsampled_softmax(logits, (33, 41))
    for x in (logits, logits.contiguous(memory_format=torch.channels_last).bfloat16()):
        torch.library.opcheck(operators.upsampled_softmax_backward.default, (maps, x))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_for_two_sizes(device):
    def both(logits, labels):
        loss, maps = ops.upsampled_cross_entropy(logits, labels, map_dtype=torch.float32)
        softmax = ops.upsampled_softmax(logits, labels.shape[1:])
        return loss + (softmax * maps).square().sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for small, large in (((5, 6), (33, 41)), ((4, 9), (20, 30))):
        logits, labels = make(small, large, device=device)
        logits.requires_grad_()
        got, want = compiled(logits, labels), both(logits, labels)
        assert_same(got.detach(), want.detach())
        grads = [torch.autograd.grad(x, logits)[0] for x in (got, want)]
        assert_same(*grads)
        assert grads[0].abs().sum() > 0


@needs_gpu
def test_runs_without_a_sync_and_in_a_cuda_graph():
    logits, labels = make((91, 161), (720, 1280), 19, 1, device="cuda")
    logits.requires_grad_()

    def step():
        loss, maps = ops.upsampled_cross_entropy(logits, labels, map_dtype=torch.bfloat16)
        softmax = ops.upsampled_softmax(logits, (512, 1024), torch.bfloat16)
        return loss, maps, softmax, torch.autograd.grad(loss + softmax.float().square().sum(), logits)[0]

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
        for into, new in zip((logits, labels), make((91, 161), (720, 1280), 19, 1, seed=seed), strict=True):
            into.data.copy_(new)
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            assert_same(got.detach(), want.detach())


def test_signatures_are_the_references():
    for name in ("upsampled_cross_entropy", "upsampled_softmax"):
        assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(reference, name))


LOGITS, LABELS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 9, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LOGITS[0], LABELS), ValueError, r"logits must be non-empty .*\[B, K, h, w\] .*got float32 \[3, 4, 5\]"),
        ((LOGITS.int(), LABELS), ValueError, r"logits must be .*got int32"),
        ((LOGITS[:, :0], LABELS), ValueError, r"logits must be non-empty .*got float32 \[2, 0, 4, 5\]"),
        ((None, LABELS), TypeError, r"logits must be a tensor, got NoneType"),
        ((LOGITS, LABELS.float()), TypeError, r"labels must be uint8, int16, int32 or int64 \[B, H, W\], got float32"),
        ((LOGITS, LABELS[:1]), ValueError, r"labels must be \[2, H, W\], .*got uint8 \[1, 8, 9\]"),
        ((LOGITS, LABELS, 255, torch.int8), ValueError, r"map_dtype must be float32, .*got torch.int8"),
        ((LOGITS, LABELS, 255, None, LABELS), ValueError, r"weights must be floating \[2, 8, 9\], .*got uint8"),
        (
            (LOGITS, LABELS, 255, None, LOGITS),
            ValueError,
            r"weights must be floating \[2, 8, 9\], .*got float32 \[2, 3",
        ),
        ((LOGITS.to("meta"), LABELS), ValueError, r"labels must be on the logits' device meta, got cpu"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^upsampled_cross_entropy: {message}"):
        ops.upsampled_cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS[0], (8, 9)), r"logits must be non-empty .*got float32 \[3, 4, 5\]"),
        ((LOGITS, (0, 9)), r"size must be positive, .*got \[0, 9\]"),
        ((LOGITS, (2**16, 2**15)), r"size must be positive, of less than 2\^31 pixels, got \[65536, 32768\]"),
        ((LOGITS, (8, 9), torch.int8), r"dtype must be float32, .*got torch.int8"),
    ],
)
def test_wrong_arguments_of_the_softmax_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^upsampled_softmax: {message}"):
        ops.upsampled_softmax(*arguments)
