"""segment_mean's CUDA kernels on the CPU: a few roundings from float64, and the same bits in any circumstances."""

import numpy as np
import pytest
import torch
from conftest import bits

from simfast import reference
from simfast.testing import assert_means_close, feature_maps, smooth_labels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = {"planes": False, "pixels": True}
# [B, C, H, W] and S: odd planes, fewer and more channels than a warp has lanes, one pixel, one column, many segments.
SHAPES = {
    "one pixel": (1, 1, 1, 1, 1),
    "few channels": (2, 3, 7, 9, 5),
    "odd plane": (2, 40, 13, 11, 8),
    "aligned plane": (1, 256, 8, 16, 3),
    "one column": (1, 5, 77, 1, 4),
    "rows of 161": (1, 20, 91, 161, 118),
    "several channel groups": (1, 300, 17, 31, 20),
    "the last group half full": (1, 104, 23, 29, 20),
    "parts longer than the ring": (1, 2048, 33, 80, 8),
    "more segments than fit at once": (1, 16, 64, 64, 700),
    "more segments than pixels": (1, 9, 5, 7, 50),
    "many splits of odd planes": (2, 9, 157, 161, 5),
}


def make(shape, dtype, seed=0):
    B, C, H, W, S = shape
    features = feature_maps(B, C, H, W, dtype, seed)
    g = torch.Generator().manual_seed(seed)
    blobs = smooth_labels(B, H, W, min(S, 200), scale=5, seed=seed).to(torch.int32)
    anywhere = torch.randint(-1, S, (B, H, W), generator=g, dtype=torch.int32)
    return features, torch.where(torch.rand(B, H, W, generator=g) < 0.2, anywhere, blobs)


def means_of(host, features, segments, S, layout="planes"):
    if layout == "pixels":  # torch may call strides of sizes 1 either layout; spell this one out
        features = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    name = str(features.dtype).removeprefix("torch.")
    means, counts = host.segment_mean(bits(features), name, LAYOUTS[layout], segments.numpy(), S)
    return torch.from_numpy(means), torch.from_numpy(counts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_few_roundings_from_float64(shuffled, name, dtype, layout):
    features, segments = make(SHAPES[name], dtype)
    S = SHAPES[name][-1]
    means, counts = means_of(shuffled, features, segments, S, layout)
    for s in range(S):
        assert counts[:, s].tolist() == (segments == s).sum((1, 2)).tolist()
    exact = reference.segment_mean(features.double(), segments, S)
    assert_means_close(means, exact)
    assert (means[counts == 0] == 0).all()


@pytest.mark.parametrize("name", SHAPES)
def test_same_bits_in_any_thread_order_and_layout(library, name):
    features, segments = make(SHAPES[name], torch.bfloat16)
    results = []
    for seed, layout in [(0, "planes"), (1, "planes"), (2, "pixels")]:
        library.configure(seed)
        results.append(means_of(library, features, segments, SHAPES[name][-1], layout)[0])
    library.configure()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((5, 300, 301), id="few splits"),
        pytest.param((4, 520, 521), id="splits shared by warps"),
        pytest.param((2048, 128, 128), id="the longest parts"),
    ],
)
def test_large_segments_of_constant_features(shuffled, shape, layout):
    channels, height, width = shape
    values = torch.tensor([1.743, 1.608, 1.99, 3.3333, 60000.0]).repeat(410)[:channels]
    features = values[None, :, None, None].expand(1, *shape).contiguous()
    rows = (torch.arange(height, dtype=torch.int32) // (height // 3))[None, :, None].expand(1, height, width)
    for segments in (torch.zeros_like(rows), rows):
        count = int(segments.max()) + 1
        means, counts = means_of(shuffled, features, segments.contiguous(), count, layout)
        assert_means_close(means, values.expand(1, count, channels))
        assert counts[0].tolist() == [int((segments == s).sum()) for s in range(count)]


def test_scattered_pixels_of_one_value(shuffled):
    """Parts of 1,024 pixels, the longest: every other pixel is a run of the same segment, added plainly to the last."""
    values = torch.linspace(1, 2, 2048)
    features = values[None, :, None, None].expand(1, 2048, 192, 192)  # every pixel at the same place
    segments = (torch.arange(192 * 192, dtype=torch.int32) % 2).view(1, 192, 192)
    means, _ = shuffled.segment_mean(features.numpy(), "float32", True, segments.numpy(), 2)
    torch.testing.assert_close(torch.from_numpy(means[0]), values.expand(2, 2048), rtol=1e-5, atol=0)


@pytest.mark.parametrize("segments", [1, 118, 1000])
@pytest.mark.parametrize("channels", [1, 3, 8, 19, 40, 300, 2048])
def test_partial_sums_are_few_beside_the_features(library, channels, segments):
    """An eighth of them, channels-last. Planes of odd size fill groups of 32 channels badly: as many at most."""
    height, width = 499_999, 4095
    for dtype in ("bfloat16", "float32"):
        for pixels, share in ((True, 8), (False, 1)):
            needed = library.segment_mean_workspace(dtype, pixels, channels, height, width, segments)
            assert needed <= 4 * channels * height * width / share * 1.05  # counts, at most one for 32 sums


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_and_nan_of_long_runs_pass_through(shuffled, dtype, layout):
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).smallest_normal, 0.0]).to(dtype)
    segments = torch.arange(5, dtype=torch.int32).repeat_interleave(64)[None, None]
    means, _ = means_of(shuffled, values.repeat_interleave(64).expand(1, 3, 1, -1), segments, 5, layout)
    torch.testing.assert_close(means[0, :, 0], values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_at_any_address(shuffled, dtype, layout):
    """Slices start anywhere within 16 bytes; NaN beside them is never read into a sum."""
    features, _ = make((2, 40, 9, 27, 6), dtype)
    g = torch.Generator().manual_seed(1)  # long runs, which end anywhere in a piece
    runs = torch.randint(-1, 6, (60,), generator=g).repeat_interleave(torch.randint(1, 40, (60,), generator=g))
    segments = runs[: 2 * 9 * 27].view(2, 9, 27).to(torch.int32)
    expected, _ = means_of(shuffled, features, segments, 6)
    for before in (1, 2, 3, 8):
        if layout == "pixels":
            big = features.new_full((2, 9, 27, 40 + before + 1), torch.nan)
            view = big[..., before:-1].permute(0, 3, 1, 2)
        else:
            big = features.new_full((2, 40 + before + 1, 9 * 27), torch.nan)
            view = big[:, before:-1].unflatten(2, (9, 27))
        view.copy_(features)
        means, _ = shuffled.segment_mean(bits(view), str(dtype)[6:], LAYOUTS[layout], segments.numpy(), 6)
        assert torch.equal(torch.from_numpy(means), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["several channel groups", "the last group half full"])
def test_same_bits_whatever_memory_a_block_has(shuffled, name, layout):
    """48 KiB take the segments in several windows; 99 KiB and more take two channels a lane out of 16-bit pixels."""
    S = 60
    features, segments = make((*SHAPES[name][:-1], S), torch.bfloat16)
    results = []
    for limit in (48, 99, 163, 227):
        shuffled.limit_shared_memory(limit * 1024)
        results.append(means_of(shuffled, features, segments, S, layout))
    for means, counts in results[1:]:
        assert torch.equal(means, results[0][0])
        assert torch.equal(counts, results[0][1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_of_a_batch_equals_itself_alone(shuffled, layout):
    features, segments = make((3, 19, 9, 7, 6), torch.float16)
    means, counts = means_of(shuffled, features, segments, 6, layout)
    for b in range(3):
        alone, count = means_of(shuffled, features[b : b + 1], segments[b : b + 1], 6, layout)
        assert torch.equal(alone[0], means[b])
        assert torch.equal(count[0], counts[b])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_without_a_segment_are_not_seen(shuffled, layout):
    features, segments = make((1, 8, 20, 20, 4), torch.float32)
    clean, _ = means_of(shuffled, features, segments, 4, layout)
    features = torch.where(segments[:, None] < 0, torch.nan, features)
    assert torch.equal(means_of(shuffled, features, segments, 4, layout)[0], clean)
    assert torch.equal(means_of(shuffled, features, torch.where(segments < 0, 4, segments), 4, layout)[0], clean)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_segments_of_any_dtype_and_strides(shuffled, dtype):
    features, segments = make((2, 6, 12, 10, 5), torch.float32)
    expected, counts = means_of(shuffled, features, segments, 5)
    other = torch.where(segments < 0, 200 if dtype == torch.uint8 else -1, segments).to(dtype)
    other = other.permute(1, 2, 0).contiguous().permute(2, 0, 1).transpose(1, 2).contiguous().transpose(1, 2)
    means, found = means_of(shuffled, features, other, 5)
    assert torch.equal(means, expected)
    assert torch.equal(counts, found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_wrong_segment_is_followed(shuffled, layout):
    segments = torch.tensor([[[0, -1, 1, -(2**63), 2**32, 2**63 - 1, 2, 3, 2**31 + 1]]])
    features, _ = make((1, 4, 1, 9, 3), torch.float32)
    means, counts = means_of(shuffled, features, segments, 3, layout)
    assert counts.tolist() == [[1, 1, 1]]
    assert torch.equal(means[0], features[0, :, 0, [0, 2, 6]].T)
    ones, none = np.ones((1, 3, 4), np.float32), [1, 3, 4, 5, 7, 8]
    grad = shuffled.segment_mean_backward(ones, counts.numpy(), segments.numpy(), "float32", LAYOUTS[layout], 0)
    grad = grad.reshape(9, 4).T if layout == "pixels" else grad.reshape(4, 9)
    assert (grad[:, none] == 0).all()
    assert (np.delete(grad, none, 1) == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_gradient_is_the_quotient_rounded_once(shuffled, name, dtype, layout):
    B, C, H, W, S = SHAPES[name]
    _, segments = make(SHAPES[name], dtype)
    counts = torch.stack([(segments == s).sum((1, 2)) for s in range(S)], 1).int()
    grad_means = torch.randn(B, S, C, generator=torch.Generator().manual_seed(1))
    quotient = torch.where(counts[..., None] > 0, grad_means / counts[..., None], 0)
    index = segments.flatten(1).clamp(min=0).long()
    expected = torch.gather(quotient, 1, index[..., None].expand(B, H * W, C))
    expected = torch.where(segments.flatten(1)[..., None] >= 0, expected, 0).to(dtype)
    for skip in (0, 1):  # elements before the gradient's first: also off the 16-byte grid
        got = shuffled.segment_mean_backward(
            grad_means.numpy(), counts.numpy(), segments.numpy(), str(dtype)[6:], LAYOUTS[layout], skip
        )
        got = got[skip:].reshape(B, H * W, C) if layout == "pixels" else got[skip:].reshape(B, C, H * W).swapaxes(1, 2)
        np.testing.assert_array_equal(got, bits(expected.contiguous()))
