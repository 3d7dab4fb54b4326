"""The ops on inputs that nobody picked, and against a second oracle. CPU only: GPU tests import fewer packages."""

import cc3d
import numpy as np
import pytest
import test_components as components
import test_nearest as nearest
import test_regions as regions
import test_segment_mean as segment_mean
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simfast import ops
from simfast.testing import IGNORE, feature_maps, smooth_labels


@pytest.mark.parametrize("connectivity", [4, 8])
def test_components_equal_cc3d_up_to_order(connectivity):
    labels = smooth_labels(1, 300, 500, ignore=0.05)
    ids, counts = ops.connected_components(labels, connectivity)
    other = cc3d.connected_components(labels[0].numpy() + np.uint8(1), connectivity=connectivity).astype(np.int64)
    pairs = np.unique(np.stack([ids[0].numpy().ravel(), other.ravel()]), axis=1)
    assert pairs.shape[1] == counts.item() + 1  # one to one, background included
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.int16,
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 2, 7, 31, 63, 64, 65, 130])),
        elements=st.sampled_from([0, 1, 300, IGNORE]),
        fill=st.sampled_from([0, IGNORE]),
    ),
    st.sampled_from([4, 8]),
)
def test_components_equal_scikit_image_on_any_small_map(labels, connectivity):
    components.check(torch.from_numpy(labels), connectivity)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.int32,
        st.tuples(st.integers(1, 2), st.integers(1, 10), st.sampled_from([1, 2, 9, 64, 65])),
        elements=st.sampled_from([0, 1, 2, 255]),
        fill=st.sampled_from([0, 1]),
    ),
    st.sampled_from([4, 8]),
    st.integers(1, 4),
)
def test_regions_equal_the_reference_on_any_small_map(labels, connectivity, max_instances):
    regions.check(torch.from_numpy(labels), [0], [1, 2], max_instances, connectivity)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.int32,
        st.tuples(st.integers(1, 2), st.integers(1, 6), st.sampled_from([1, 3, 17, 40])),
        elements=st.integers(-1, 4),
        fill=st.integers(-1, 4),
    ),
    st.integers(1, 19),
    st.booleans(),
)
def test_segment_means_of_any_small_map(segments, channels, channels_last):
    images, height, width = segments.shape
    features = feature_maps(images, channels, height, width)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    segment_mean.check(features, torch.from_numpy(segments), 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**31))
def test_nearest_of_any_ragged_problem_with_ties(num_queries, num_classes, max_rows, width, seed):
    nearest.check("cpu", *nearest.problem(num_queries, num_classes, max_rows, width, whole=True, seed=seed))
