"""The reference ops against independent oracles: scikit-image and cc3d for components, loops in NumPy for the rest."""

import cc3d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label as sk_label

from simfast import reference as ops
from simfast.testing import HARD_MAPS, IGNORE

label_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, IGNORE])
)


def check_components(x: np.ndarray, connectivity: int) -> None:
    ids, counts = ops.connected_components(torch.from_numpy(x)[None], connectivity)
    expected = sk_label(x.astype(int), background=IGNORE, connectivity=connectivity // 4)
    np.testing.assert_array_equal(ids[0].numpy(), expected)
    assert counts.tolist() == [expected.max()]
    assert ids.dtype == counts.dtype == torch.int32


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", HARD_MAPS)
def test_components_equal_scikit_image(name, connectivity):
    check_components(HARD_MAPS[name], connectivity)


@given(label_maps, st.sampled_from([4, 8]))
@settings(max_examples=60, deadline=None)
def test_components_equal_scikit_image_on_random_maps(x, connectivity):
    check_components(x, connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_components_are_the_partition_of_cc3d(connectivity):
    x = HARD_MAPS["noise of 19 classes"] % 3 + 1  # cc3d's background is 0
    ids = ops.connected_components(torch.from_numpy(x)[None], connectivity)[0][0].numpy()
    theirs, count = cc3d.connected_components(x, connectivity=connectivity, return_N=True)
    pairs = np.unique(np.stack([ids.ravel(), theirs.ravel()]), axis=1)
    assert pairs.shape[1] == count == ids.max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_an_image_of_a_strided_batch_equals_itself_alone(dtype):
    batch = torch.randint(0, 3, (3, 22, 34)).to(dtype)[:, ::2, 1::3].transpose(1, 2)
    ids, counts = ops.connected_components(batch, background=1)
    for image in range(3):
        alone, count = ops.connected_components(batch[image : image + 1].contiguous(), background=1)
        assert torch.equal(ids[image], alone[0])
        assert counts[image] == count[0]


def test_a_background_outside_the_dtype_is_no_background():
    assert ops.connected_components(torch.full((1, 2, 2), 255, dtype=torch.uint8), background=-1)[1].tolist() == [1]


def regions_by_loop(x, stuff, things, max_instances, connectivity):
    """Eq. 5 and Algorithm 1 as one would write them down."""
    segments = np.full(x.shape, -1)
    areas = np.zeros(len(stuff) + len(things) * max_instances, int)
    for slot, class_id in enumerate(stuff):
        segments[x == class_id] = slot
        areas[slot] = (x == class_id).sum()
    for i, class_id in enumerate(things):
        parts = sk_label(x == class_id, connectivity=connectivity // 4)
        found = [np.argwhere(parts == part) for part in range(1, parts.max() + 1)]
        found.sort(key=lambda pixels: (-len(pixels), tuple(pixels[0])))
        for rank, pixels in enumerate(found[:max_instances]):
            slot = len(stuff) + i * max_instances + rank
            segments[tuple(pixels.T)] = slot
            areas[slot] = len(pixels)
    return segments, areas


def check_regions(batch, stuff, things, max_instances, connectivity):
    segments, areas = ops.find_regions(torch.from_numpy(batch), stuff, things, max_instances, connectivity)
    assert segments.dtype == areas.dtype == torch.int32
    for image, x in enumerate(batch):
        expected = regions_by_loop(x, stuff, things, max_instances, connectivity)
        np.testing.assert_array_equal(segments[image].numpy(), expected[0])
        np.testing.assert_array_equal(areas[image].numpy(), expected[1])


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", HARD_MAPS)
def test_regions_equal_a_loop_over_masks(name, connectivity):
    check_regions(HARD_MAPS[name][None], [0, 5], [3, 1, 17], 3, connectivity)


@given(
    hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)),
    st.integers(1, 4),
    st.sampled_from([([0], [1, 2]), ([], [3]), ([4, 1], []), ([2], [0, 1, 3, 4])]),
)
@settings(max_examples=60, deadline=None)
def test_regions_equal_a_loop_over_masks_on_random_maps(batch, max_instances, classes):
    check_regions(batch, *classes, max_instances, 8)


def test_equal_regions_come_in_raster_order_and_the_rest_is_left_out():
    x = torch.tensor([[[1, 0, 1, 1, 0, 1, 0, 1]]])
    segments, areas = ops.find_regions(x, [0], [1], max_instances=3)
    assert segments.tolist() == [[[2, 0, 1, 1, 0, 3, 0, -1]]]
    assert areas.tolist() == [[3, 2, 1, 1]]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_segment_mean_equals_numpy_in_float64(dtype, channels_last):
    features = torch.randn(2, 5, 9, 11).to(dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    segments = torch.randint(-1, 4, (2, 9, 11), dtype=torch.int32)
    means = ops.segment_mean(features, segments, 6)  # segments 4 and 5 are empty
    assert means.dtype == torch.float32
    for image in range(2):
        for s in range(6):
            pixels = features[image].double().numpy()[:, segments[image].numpy() == s]
            expected = pixels.mean(1) if pixels.shape[1] else np.zeros(5)
            # a float32 sum of at most 99 terms of size about 1
            np.testing.assert_allclose(means[image, s].numpy(), expected, rtol=0, atol=1e-6)


def test_segment_mean_gradient():
    segments = torch.randint(-1, 4, (2, 3, 4))
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: ops.segment_mean(f, segments, 5), features)


def nearest_by_loop(queries, classes, bank, filled):
    distances, rows = np.full(len(queries), np.inf), np.full(len(queries), -1)
    for n, k in enumerate(classes):
        for row in range(filled[k] if k >= 0 else 0):
            distance = np.abs(queries[n].astype(np.float64) - bank[k, row]).sum()
            if distance < distances[n]:
                distances[n], rows[n] = distance, row
    return distances, rows


@given(st.integers(0, 7), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_nearest_equals_a_loop_ties_and_empty_banks_included(n, k, r, d, seed):
    rng = np.random.default_rng(seed)
    # small whole numbers: distances are exact, and ties are common
    queries, bank = rng.integers(-2, 3, (n, d)).astype(np.float32), rng.integers(-2, 3, (k, r, d)).astype(np.float32)
    classes, filled = rng.integers(-1, k, n), rng.integers(0, r + 1, k)
    distances, rows = ops.nearest_l1(*map(torch.from_numpy, (queries, classes, bank, filled)))
    expected = nearest_by_loop(queries, classes, bank, filled)
    np.testing.assert_array_equal(distances.numpy(), expected[0])
    np.testing.assert_array_equal(rows.numpy(), expected[1])
    assert distances.dtype == torch.float32
    assert rows.dtype == torch.int64


def test_nearest_gradient_is_the_sign_and_zero_where_nothing_is_near():
    queries = torch.tensor([[1.0, 5.0, -2.0], [1.0, 1.0, 1.0]], requires_grad=True)
    bank = torch.tensor([[[1.0, 3.0, 0.0]], [[0.0, 0.0, 0.0]]], requires_grad=True)
    distances, _ = ops.nearest_l1(queries, torch.tensor([0, 1]), bank, torch.tensor([1, 0]))
    torch.where(distances.isfinite(), distances, 0).sum().backward()
    assert queries.grad.tolist() == [[0, 1, -1], [0, 0, 0]]
    assert bank.grad is None


def test_bad_input_is_named():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    cases = [
        (TypeError, "connected_components: labels .* got float32", lambda: ops.connected_components(labels.float())),
        (
            ValueError,
            "labels must be a non-empty integer .* got int64 .2, 2.",
            lambda: ops.connected_components(labels[0]),
        ),
        (ValueError, "connectivity must be 4 or 8, got 6", lambda: ops.connected_components(labels, 6)),
        (ValueError, "distinct class ids", lambda: ops.find_regions(labels, [1], [1])),
        (ValueError, "max_instances must be at least 1, got 0", lambda: ops.find_regions(labels, [0], [1], 0)),
        (ValueError, "segments must be .* got .1, 2, 2.", lambda: ops.segment_mean(torch.zeros(1, 1, 2, 3), labels, 1)),
        (ValueError, "features must be floating", lambda: ops.segment_mean(labels[None], labels, 1)),
        (
            ValueError,
            "same width D",
            lambda: ops.nearest_l1(
                torch.zeros(1, 2), torch.zeros(1).long(), torch.zeros(1, 1, 3), torch.zeros(1).long()
            ),
        ),
        (
            ValueError,
            r"classes must be integer \[1\]",
            lambda: ops.nearest_l1(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 1, 2), torch.zeros(1).long()),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
