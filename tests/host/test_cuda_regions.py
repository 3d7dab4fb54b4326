"""find_regions' CUDA kernels on the CPU: equal to simfast.reference, in one launch for small maps and in several."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_cuda_components import TILE_MAPS

from simfast import reference
from simfast.testing import HARD_MAPS, LABEL_LAYOUTS, STUFF, THINGS, noise_labels, smooth_labels

# Shared memory a block may have: as much as sm_86 gives, and too little for anything but several launches.
ONE_LAUNCH, SEVERAL_LAUNCHES = 99 * 1024, 40 * 1024


def check(host, labels: np.ndarray, stuff=STUFF, things=THINGS, max_instances=10, connectivity=8) -> None:
    segments, areas = host.regions(labels, stuff, things, max_instances, connectivity)
    expected = reference.find_regions(torch.from_numpy(labels), stuff, things, max_instances, connectivity)
    np.testing.assert_array_equal(areas, expected[1])
    np.testing.assert_array_equal(segments, expected[0])


@pytest.fixture(params=[ONE_LAUNCH, SEVERAL_LAUNCHES], ids=["one launch", "several launches"])
def either(shuffled, request):
    shuffled.limit_shared_memory(request.param)
    return shuffled


@pytest.mark.parametrize("name", [*HARD_MAPS, *TILE_MAPS])
def test_equal_to_the_reference(either, name):
    labels = (HARD_MAPS | TILE_MAPS)[name][None]
    classes = np.unique(labels).tolist()
    check(either, labels, [], classes[:40], max_instances=3)
    check(either, labels, classes[:1], classes[1:40], max_instances=2, connectivity=4)


@pytest.mark.parametrize("shape", [(65, 129), (91, 161), (96, 161)], ids=str)
def test_the_maps_of_training_are_one_launch(shuffled, shape):
    """Also for the smallest shared memory, that of sm_86, sm_89 and sm_120."""
    labels = smooth_labels(2, *shape, scale=8, ignore=0.1).to(torch.int64)
    before = shuffled.launches()
    check(shuffled, labels.numpy())
    assert shuffled.launches() == before + 1


@pytest.mark.parametrize("shape", [(1, 9000), (9, 1100), (1500, 3), (1100, 1), (128, 256)], ids=str)
def test_small_maps_of_any_shape_are_one_launch(shuffled, shape):
    """With the shared memory of sm_90; more columns or rows than a block has threads, and an area of 2^15."""
    shuffled.limit_shared_memory(227 * 1024)
    before = shuffled.launches()
    check(shuffled, np.full((1, *shape), THINGS[0], np.int32))
    check(shuffled, smooth_labels(1, *shape, scale=8, ignore=0.1).numpy())
    assert shuffled.launches() == before + 2


@pytest.mark.parametrize("num_components", [255, 256, 257])
def test_as_many_components_as_are_compared_at_once_and_more(shuffled, num_components):
    labels = np.zeros((1, 40, 80), np.uint8)
    labels[0, ::2, ::2].flat[:num_components] = 5
    labels[0, 3, 4:7] = 5  # a larger one, of several of these
    check(shuffled, labels, [0], [5], 30)


def test_a_large_map_takes_several_launches(shuffled):
    labels = smooth_labels(1, 130, 200, scale=16, ignore=0.1).numpy()
    before = shuffled.launches()
    check(shuffled, labels)
    assert shuffled.launches() == before + 5


def test_ties_go_to_the_first_in_raster_order(either):
    labels = np.zeros((1, 70, 140), np.uint8)
    labels[0, 1::3, 1::3] = 5  # 23 x 47 regions of one pixel, over six tiles
    segments, areas = either.regions(labels, [0], [5], 10, 8)
    kept = np.argwhere(segments[0] > 0)
    assert [tuple(x) for x in kept] == [(1, 1 + 3 * i) for i in range(10)]
    assert segments[0][tuple(kept.T)].tolist() == list(range(1, 11))
    assert areas[0].tolist() == [labels.size - 23 * 47] + [1] * 10


def test_more_slots_than_regions_are_empty(either):
    labels = np.array([[[5, 0, 5], [0, 0, 5], [6, 9, 9]]], np.int16)
    segments, areas = either.regions(labels, [0, 1], [5, 6, 7], 4, 4)
    assert areas.tolist() == [[3, 0, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert segments.tolist() == [[[3, 0, 2], [0, 0, 2], [6, -1, -1]]]


@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_dtype_and_strides_are_read_in_place(shuffled, dtype, layout):
    labels = LABEL_LAYOUTS[layout](noise_labels(2, 66, 70, 19, 0.1).to(dtype)).numpy()
    for limit in (ONE_LAUNCH, SEVERAL_LAUNCHES):
        shuffled.limit_shared_memory(limit)
        check(shuffled, labels)


def test_class_ids_need_not_be_small(either):
    labels = noise_labels(1, 67, 70, 5).to(torch.int64).numpy()
    values = np.array([-3, 2**40, 2**40 + 2**32, 255, 7])
    check(either, values[labels], stuff=[-3], things=[2**40, 255, 2**33])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_map(library, data):
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 70)))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 4), fill=st.integers(0, 4)))
    library.configure(data.draw(st.integers(0, 1000)), 4, data.draw(st.sampled_from([ONE_LAUNCH, 38 * 1024])))
    check(library, labels, [3], [0, 1], data.draw(st.integers(1, 4)), data.draw(st.sampled_from([4, 8])))
