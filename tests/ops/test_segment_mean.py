"""segment_mean: a few roundings from float64, a gradient that is exact, the same bits in every run."""

import pytest
import torch

from simfast import ops, reference
from simfast.testing import (
    DEVICES,
    FEATURE_LAYOUTS,
    LABEL_LAYOUTS,
    STUFF,
    THINGS,
    assert_means_close,
    assert_same,
    feature_maps,
    noise_labels,
    smooth_labels,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def regions(images, height, width, scale=8, seed=0):
    """Segments as the matching makes them, and their number."""
    labels = smooth_labels(images, height, width, scale=scale, ignore=0.1, seed=seed)
    segments, areas = reference.find_regions(labels, STUFF, THINGS)
    return segments, areas.shape[1]


def check(features, segments, num_segments):
    """Forward as good as float32 allows; backward equal to the honest quotient, rounded once."""
    features = features.detach().requires_grad_()
    means = ops.segment_mean(features, segments, num_segments)
    assert means.dtype == torch.float32
    on_cpu, map_on_cpu = features.detach().cpu(), segments.cpu()
    exact = reference.segment_mean(on_cpu.double(), map_on_cpu, num_segments)
    assert_means_close(means.detach(), exact)

    grad_means = torch.randn(means.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(means, features, grad_means.to(means.device))
    valid = (map_on_cpu >= 0) & (map_on_cpu < num_segments)
    slot = torch.where(valid, map_on_cpu.long(), 0)
    counts = torch.stack([torch.bincount(s[v], minlength=num_segments) for s, v in zip(slot, valid, strict=True)])
    quotient = grad_means / counts.clamp(min=1)[..., None]
    rows = torch.stack([q[s] for q, s in zip(quotient, slot, strict=True)])
    expected = torch.where(valid[..., None], rows, 0).permute(0, 3, 1, 2).to(features.dtype)
    assert_same(grad, expected, "gradient")
    return means, grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", FEATURE_LAYOUTS)
def test_any_dtype_and_layout(layout, dtype, device):
    segments, num_segments = regions(2, 33, 41)
    features = FEATURE_LAYOUTS[layout](feature_maps(2, 37, 33, 41, dtype).to(device))
    check(features, segments.to(device), num_segments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 91, 161),
        (2, 300, 65, 129),
        (1, 2048, 8, 9),
        (1, 1, 50, 60),
        (3, 5, 1, 77),
        (1, 1100, 70, 1),
        (1, 3, 1, 1),
    ],
    ids=str,
)
def test_odd_sizes(shape, channels_last, device):
    segments, num_segments = regions(shape[0], *shape[2:])
    features = feature_maps(*shape, torch.bfloat16).to(device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    check(features, segments.to(device), num_segments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_noise_and_one_single_segment(channels_last, device):
    features = feature_maps(2, 40, 61, 67).to(device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    noise = noise_labels(2, 61, 67, 200).to(device)
    check(features, noise, 200)
    check(features, noise, 150)  # 150..199 belong to no segment
    check(features, torch.zeros_like(noise), 1)
    check(features, torch.full_like(noise, 255), 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_large_segments_of_constant_features(memory_format, device):
    """One float32 after another would be off by parts in a thousand here, by parts in a hundred on a 4K map."""
    values = torch.tensor([0.1, 1.1, 1.99, 3.3333, 60000.0])
    features = values[None, :, None, None].expand(1, 5, 700, 900).contiguous(memory_format=memory_format).to(device)
    rows = (torch.arange(700, device=device) // 250)[None, :, None].expand(1, 700, 900)
    for segments, count in ((torch.zeros_like(rows), 1), (rows, 3)):
        for op in (ops.segment_mean, reference.segment_mean):
            assert_means_close(op(features, segments, count), values.expand(1, count, 5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
def test_any_dtype_and_strides_of_segments(layout, dtype, device):
    segments = noise_labels(2, 19, 35, 6).to(device, dtype)
    if dtype != torch.uint8:
        segments[:, 3:7] = -1
    check(feature_maps(2, 9, 19, 35).to(device), LABEL_LAYOUTS[layout](segments), 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_wrong_segment_is_followed(channels_last, device):
    segments = torch.tensor([[[0, -1, 1, -(2**63), 2**32, 2**63 - 1, 2]]], device=device)
    features = feature_maps(1, 4, 1, 7).to(device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    check(features, segments, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_nan_and_tiny_values_pass_through(dtype, device):
    tiny = torch.finfo(dtype).smallest_normal
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, tiny, tiny / 4, -tiny / 2, 0.0, -0.0]).to(dtype)
    for pixels in (1, 64):  # of a segment; so many are added up in steps
        segments = torch.arange(8, device=device).repeat_interleave(pixels)[None, None]
        for layout in (torch.contiguous_format, torch.channels_last):
            features = values.repeat_interleave(pixels).expand(1, 3, 1, -1).contiguous(memory_format=layout).to(device)
            means = ops.segment_mean(features, segments, 8)
            torch.testing.assert_close(means[0, :, 0].cpu(), values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_are_rounded_to_nearest_even(dtype, channels_last, device):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    exact = bits.view(dtype).float()
    exact = exact[exact.isfinite()]
    middle = (exact[:-1] + exact[1:]) / 2
    grads = torch.cat([exact, middle, exact * 1.0001, torch.tensor([torch.inf, torch.nan, 65519.0, 65520.0, 3.4e38])])
    features = feature_maps(1, len(grads), 1, 1, dtype).to(device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    means = ops.segment_mean(features, torch.zeros(1, 1, 1, dtype=torch.uint8, device=device), 1)
    (grad,) = torch.autograd.grad(means, features, grads.to(device).view(1, 1, -1))
    torch.testing.assert_close(grad.flatten().cpu(), grads.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_takes_the_features_layout(device):
    segments, num_segments = regions(1, 9, 11)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        features = feature_maps(1, 6, 9, 11).to(device).contiguous(memory_format=memory_format)
        _, grad = check(features, segments.to(device), num_segments)
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("device", DEVICES)
def test_backward_does_not_keep_the_features(device):
    segments = noise_labels(1, 8, 8, 3).to(device)
    features = feature_maps(1, 5, 8, 8).to(device).requires_grad_()
    means = ops.segment_mean(features * 1, segments, 3)
    assert sorted(tuple(x.shape) for x in means.grad_fn.saved_tensors) == [(1, 3), (1, 8, 8)]


@pytest.mark.parametrize("device", DEVICES)
def test_one_image_of_a_batch_equals_itself_alone(device):
    segments, num_segments = regions(3, 30, 50)
    features, segments = feature_maps(3, 20, 30, 50).to(device), segments.to(device)
    means = ops.segment_mean(features, segments, num_segments)
    for b in range(3):
        assert_same(means[b : b + 1], ops.segment_mean(features[b : b + 1], segments[b : b + 1], num_segments))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_in_every_run_and_in_poisoned_memory(channels_last, device):
    segments, num_segments = regions(2, 65, 97)
    features = feature_maps(2, 130, 65, 97, torch.bfloat16).to(device)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    first = check(features, segments.to(device), num_segments)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what a kernel gets uninitialised with NaN
    try:
        again = check(features, segments.to(device), num_segments)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("channels_last", [False, True])
def test_same_bits_whatever_the_number_of_threads(channels_last):
    segments, num_segments = regions(1, 65, 97)
    features = feature_maps(1, 130, 65, 97)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(check(features, segments, num_segments))
    finally:
        torch.set_num_threads(before)
    for means, grad in results[1:]:
        assert_same(means, results[0][0])
        assert_same(grad, results[0][1])


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck(channels_last):
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    segments = noise_labels(2, 4, 5, 4).int() - 1
    assert torch.autograd.gradcheck(lambda x: ops.segment_mean(x, segments, 4), features.requires_grad_())


def test_second_derivative_is_refused():
    features = feature_maps(1, 2, 3, 4).requires_grad_()
    means = ops.segment_mean(features, torch.zeros(1, 3, 4, dtype=torch.int32), 1)
    (grad,) = torch.autograd.grad((means**2).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^segment_mean: can be differentiated once"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    segments = noise_labels(1, 8, 8, 3).to(device)
    features = feature_maps(1, 5, 8, 8).to(device)
    plain = ops.segment_mean(features, segments, 3)
    with torch.autocast(device, torch.bfloat16):
        assert_same(ops.segment_mean(features, segments, 3), plain)


@pytest.mark.parametrize("device", DEVICES)
def test_no_segment_and_no_channel(device):
    segments = torch.zeros(2, 3, 4, dtype=torch.int32, device=device)
    features = feature_maps(2, 5, 3, 4).to(device).requires_grad_()
    means = ops.segment_mean(features, segments, 0)
    assert means.shape == (2, 0, 5)
    means.sum().backward()
    assert_same(features.grad, torch.zeros(2, 5, 3, 4))
    assert ops.segment_mean(features[:, :0], segments, 3).shape == (2, 3, 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(memory_format, device):
    segments, num_segments = regions(2, 7, 9)
    features = feature_maps(2, 5, 7, 9).to(device).contiguous(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(torch.ops.simfast.segment_mean.default, (features, segments.to(device), num_segments))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_for_two_sizes(device):
    def pool(features, labels):
        segments, areas = ops.find_regions(labels, STUFF, THINGS)
        return ops.segment_mean(features, segments, areas.shape[1])

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    for images, channels, height, width in ((2, 6, 20, 30), (1, 6, 33, 17)):
        labels = smooth_labels(images, height, width, scale=4).to(device)
        features = feature_maps(images, channels, height, width).to(device).requires_grad_()
        got, want = compiled(features, labels), pool(features, labels)
        assert_same(got.detach(), want.detach())
        grads = [torch.autograd.grad((x * x).sum(), features)[0] for x in (got, want)]
        assert_same(*grads)
        assert grads[0].abs().sum() > 0


MAP, FEATURES = torch.zeros(1, 2, 3, dtype=torch.int32), torch.zeros(1, 4, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((FEATURES, MAP.float(), 1), TypeError, r"segments must be .*got float32 \[1, 2, 3\]"),
        ((FEATURES, MAP[0], 1), ValueError, r"segments must be .*got int32 \[2, 3\]"),
        ((FEATURES[0], MAP, 1), ValueError, r"features must be .*\[B, C, H, W\].*got float32 \[4, 2, 3\]"),
        ((FEATURES.int(), MAP, 1), ValueError, r"features must be float32, .*got int32"),
        ((FEATURES[..., :2], MAP, 1), ValueError, r"segments must be \[B, H, W\] of features \[1, 4, 2, 2\], got"),
        ((FEATURES, MAP, -1), ValueError, r"num_segments must be at least 0, got -1"),
        ((FEATURES.to("meta"), MAP, 1), ValueError, r"segments must be on the features' device meta, got cpu"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^segment_mean: {message}"):
        ops.segment_mean(*arguments)
