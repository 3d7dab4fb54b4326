"""find_regions: equal to the reference in every slot, on hard maps, odd sizes, any dtype and strides."""

import pytest
import torch

from simfast import ops, reference
from simfast.testing import (
    DEVICES,
    HARD_MAPS,
    LABEL_LAYOUTS,
    STUFF,
    THINGS,
    assert_same,
    noise_labels,
    smooth_labels,
)


def check(labels, stuff=STUFF, things=THINGS, max_instances=10, connectivity=8):
    segments, areas = ops.find_regions(labels, stuff, things, max_instances, connectivity)
    expected_segments, expected_areas = reference.find_regions(
        labels.cpu().contiguous(), stuff, things, max_instances, connectivity
    )
    assert_same(segments, expected_segments, "segments")
    assert_same(areas, expected_areas, "areas")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", HARD_MAPS)
def test_equal_to_the_reference(name, connectivity, device):
    labels = torch.from_numpy(HARD_MAPS[name])[None].to(device)
    check(labels, connectivity=connectivity)
    check(labels, stuff=[0], things=[1, 2, 3], max_instances=2, connectivity=connectivity)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 91, 161), (2, 65, 129), (4, 64, 128), (1, 96, 161), (2, 255, 513)], ids=str)
@pytest.mark.parametrize("scale", [4, 24])
def test_sizes_of_the_method_and_larger(shape, scale, device):
    check(smooth_labels(*shape, scale=scale, ignore=0.1).to(device))
    check(noise_labels(*shape, ignore=0.1).to(device))


def test_worked_by_hand():
    labels = torch.tensor(
        [
            [5, 5, 0, 5, 9],
            [0, 0, 0, 9, 5],
            [6, 0, 5, 0, 6],
            [6, 0, 5, 5, 6],
        ],
        dtype=torch.uint8,
    )[None]
    # Class 5: two at the top left, two on the diagonal at the right, three at the bottom. Class 6: two and two.
    segments, areas = ops.find_regions(labels, [0], [5, 6], max_instances=2)
    assert segments[0].tolist() == [[2, 2, 0, -1, -1], [0, 0, 0, -1, -1], [3, 0, 1, 0, 4], [3, 0, 1, 1, 4]]
    assert areas.tolist() == [[7, 3, 2, 2, 2]]


@pytest.mark.parametrize("device", DEVICES)
def test_ties_go_to_the_first_in_raster_order(device):
    labels = torch.full((1, 40, 81), 255, dtype=torch.uint8, device=device)
    labels[:, ::2, ::2] = 11  # 820 regions of one pixel
    segments, areas = ops.find_regions(labels, [], [11], max_instances=50)
    assert areas.tolist() == [[1] * 50]
    assert segments[0, ::2, ::2].flatten()[:51].tolist() == [*range(50), -1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
def test_any_dtype_and_strides(layout, dtype, device):
    labels = smooth_labels(2, 33, 77, scale=6, ignore=0.1).to(device, dtype)
    check(LABEL_LAYOUTS[layout](labels))


@pytest.mark.parametrize("device", DEVICES)
def test_classes_outside_a_byte(device):
    values = [-1, 2**40, 7, 263, 2**63 - 1]  # 7 and 263 share their low byte
    labels = torch.tensor(values)[noise_labels(2, 40, 70, len(values)).long()].to(device)
    check(labels, stuff=[2**40, -1], things=[7, 2**63 - 1], max_instances=3)
    check(labels.clamp(-1, 300).short(), stuff=[-1, 2**40], things=[263, 7])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("stuff", "things"), [([], []), ([], [3, 4]), ([3, 4], []), (range(30), range(30, 64))])
def test_any_lists_of_classes(stuff, things, device):
    check(smooth_labels(2, 30, 40, scale=5).to(device), list(stuff), list(things))


# More than the 64 that one launch takes: the last stuff and the first things share a search, or begin one.
MANY = {
    "stuff": (range(255), []),
    "things": ([], range(255)),
    "65": (range(1), range(1, 65)),
    "a border at 64": (range(64), range(64, 255)),
    "both in the second search": (range(200, 100, -1), [*range(3), *range(201, 255)]),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("stuff", "things"), MANY.values(), ids=MANY)
def test_more_classes_than_a_launch_takes(stuff, things, device):
    for labels in (noise_labels(2, 60, 70, 255, 0.1), smooth_labels(2, 60, 70, 255, scale=6)):
        check(labels.to(device), list(stuff), list(things), max_instances=2, connectivity=4)


def test_many_classes_compile_without_a_break():
    compiled = torch.compile(lambda x: ops.find_regions(x, *MANY["65"], 2), fullgraph=True, backend="aot_eager")
    labels = noise_labels(1, 20, 30, 65)
    for got, want in zip(compiled(labels), ops.find_regions(labels, *MANY["65"], 2), strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_one_image_of_a_batch_equals_itself_alone(device):
    labels = smooth_labels(3, 91, 161, scale=8).to(device)
    segments, areas = ops.find_regions(labels, STUFF, THINGS)
    for b in range(3):
        alone = ops.find_regions(labels[b : b + 1], STUFF, THINGS)
        assert_same(segments[b : b + 1], alone[0])
        assert_same(areas[b : b + 1], alone[1])


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_in_every_run_and_in_poisoned_memory(device):
    labels = noise_labels(2, 91, 161, 19, 0.1).to(device)
    first = ops.find_regions(labels, STUFF, THINGS)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what a kernel gets uninitialised with the dtype's maximum
    try:
        again = ops.find_regions(labels, STUFF, THINGS)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)


def test_same_bits_whatever_the_number_of_threads():
    labels = smooth_labels(1, 300, 400, scale=6)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(ops.find_regions(labels, STUFF, THINGS))
    finally:
        torch.set_num_threads(before)
    for segments, areas in results[1:]:
        assert_same(segments, results[0][0])
        assert_same(areas, results[0][1])


def test_a_class_given_twice_is_refused_by_the_operator_itself():
    # Its kernels rely on it, and a graph that was traced or exported calls it without simfast.ops.find_regions.
    for stuff, things in (([0, 0], [1]), ([0], [0]), ([], [1, 1])):
        with pytest.raises(RuntimeError, match=r"find_regions: .* distinct classes, got [01] twice"):
            torch.ops.simfast.find_regions.default(torch.zeros(1, 4, 4, dtype=torch.int64), stuff, things, 10, 8)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    labels = smooth_labels(2, 9, 12, scale=3).to(device)
    torch.library.opcheck(torch.ops.simfast.find_regions.default, (labels, STUFF, THINGS, 10, 8))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_for_two_sizes(device):
    compiled = torch.compile(lambda x: ops.find_regions(x, STUFF, THINGS), fullgraph=True, backend="aot_eager")
    for shape in ((2, 20, 30), (1, 33, 17)):
        labels = smooth_labels(*shape, scale=4)
        expected = reference.find_regions(labels, STUFF, THINGS)
        for got, want in zip(compiled(labels.to(device)), expected, strict=True):
            assert_same(got, want)


LABELS = torch.zeros(1, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LABELS.float(), [0], [1]), TypeError, r"labels must be .*got float32 \[1, 2, 2\]"),
        ((LABELS[0], [0], [1]), ValueError, r"labels must be .*\[B, H, W\], got uint8 \[2, 2\]"),
        ((LABELS, [0, 1], [1]), ValueError, r"stuff and things must hold distinct class ids, got \[0, 1\] and \[1\]"),
        ((LABELS, [0], [1], 0), ValueError, r"max_instances must be at least 1, got 0"),
        ((LABELS, [0], [1], 2**31), ValueError, r"max_instances must leave less than 2\^31 slots, got 2147483648"),
        ((LABELS, [0], [1], 10, 5), ValueError, r"connectivity must be 4 or 8, got 5"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^find_regions: {message}"):
        ops.find_regions(*arguments)
