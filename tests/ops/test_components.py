"""connected_components: equal to scikit-image and cc3d, value for value; two halves of a batch equal the whole."""

import inspect

import numpy as np
import pytest
import torch

from simfast import ops, reference
from simfast.testing import (
    DEVICES,
    HARD_MAPS,
    IGNORE,
    LABEL_LAYOUTS,
    assert_same,
    noise_labels,
    smooth_labels,
)

DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]


def expected(labels: torch.Tensor, connectivity: int = 8, background: int = IGNORE):
    """scikit-image's answer, to which the CPU is held; the CPU's own, to which a GPU is: there only torch is needed."""
    if labels.is_cuda:
        return ops.connected_components(labels.cpu(), connectivity, background)
    from skimage.measure import label as sk_label

    ids = [sk_label(x.astype(np.int64), background=background, connectivity=connectivity // 4) for x in labels.numpy()]
    counts = torch.tensor([x.max() for x in ids], dtype=torch.int32)
    return torch.from_numpy(np.stack(ids).astype(np.int32)), counts


def check(labels: torch.Tensor, connectivity: int = 8, background: int = IGNORE) -> None:
    ids, counts = ops.connected_components(labels, connectivity, background)
    expected_ids, expected_counts = expected(labels, connectivity, background)
    assert_same(ids, expected_ids, "ids")
    assert_same(counts, expected_counts, "counts")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", HARD_MAPS)
def test_equal_to_scikit_image(name, connectivity, device):
    check(torch.from_numpy(HARD_MAPS[name])[None].to(device), connectivity)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 512, 1024), (3, 91, 161), (2, 333, 65), (1, 1024, 63)], ids=str)
def test_large_maps_whatever_the_threads_cut(shape, device):
    check(smooth_labels(*shape, scale=8, ignore=0.1).to(device))
    check(noise_labels(*shape, num_classes=2, ignore=0.1).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
def test_any_dtype_and_strides(layout, dtype, device):
    labels = noise_labels(2, 33, 77, 3, 0.1).to(device, dtype)
    check(LABEL_LAYOUTS[layout](labels))


@pytest.mark.parametrize("device", DEVICES)
def test_expanded_labels_are_read_in_place(device):
    row = torch.tensor([[[0, 0, 1, 255, 1]]], dtype=torch.uint8, device=device)
    check(row.expand(3, 70, 5))
    check(row[:, :, :1].expand(1, 4, 100))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("values", "background"),
    [
        pytest.param([-1, 0, 1], -1, id="negative background"),
        pytest.param([0, 1], 0, id="background 0"),
        pytest.param([-128, 127, 128, 255, -129], 255, id="around a byte's limits"),
        pytest.param([0, 256, 512, 2**40], 0, id="equal in the low byte"),
        pytest.param([2**32, 0, 2**63 - 1, -(2**63)], 2**32, id="equal in the low word"),
        pytest.param([1, 2], -(2**63), id="background nowhere"),
    ],
)
def test_labels_outside_a_byte(values, background, device):
    pick = noise_labels(2, 31, 66, len(values)).long()
    check(torch.tensor(values)[pick].to(device), background=background)


@pytest.mark.parametrize("device", DEVICES)
def test_background_the_dtype_cannot_hold_is_nowhere(device):
    check(noise_labels(1, 20, 20, 3).to(device), background=256 + 1)
    check(noise_labels(1, 20, 20, 3).to(device), background=-1)


@pytest.mark.parametrize("device", DEVICES)
def test_one_image_of_a_batch_equals_itself_alone(device):
    labels = smooth_labels(3, 70, 90, scale=6, ignore=0.2).to(device)
    ids, counts = ops.connected_components(labels)
    for b in range(3):
        alone, count = ops.connected_components(labels[b : b + 1])
        assert_same(ids[b : b + 1], alone)
        assert_same(counts[b : b + 1], count)


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_in_every_run(device):
    labels = noise_labels(2, 200, 300, 3).to(device)
    first = ops.connected_components(labels)
    for _ in range(3):
        for a, b in zip(first, ops.connected_components(labels), strict=True):
            assert_same(a, b)


def test_same_bits_whatever_the_number_of_threads():
    labels = noise_labels(1, 400, 300, 2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(ops.connected_components(labels)[0])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same(other, results[0])


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for labels in (noise_labels(2, 7, 9), noise_labels(2, 7, 9).long().transpose(1, 2)):
        torch.library.opcheck(torch.ops.simfast.connected_components.default, (labels.to(device), 8, IGNORE))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_for_two_sizes(device):
    compiled = torch.compile(lambda x: ops.connected_components(x.argmax(1)), fullgraph=True, backend="aot_eager")
    for size in ((2, 3, 20, 30), (1, 3, 33, 17)):
        logits = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
        for got, want in zip(compiled(logits), expected(logits.argmax(1)), strict=True):
            assert_same(got, want)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(1, 2, 2),), TypeError, r"labels must be .*got float32 \[1, 2, 2\]"),
        ((torch.zeros(1, 2, 2, dtype=torch.int8),), TypeError, r"labels must be uint8, .*got int8"),
        ((np.zeros((1, 2, 2), np.uint8),), TypeError, r"labels must be a tensor, got ndarray"),
        ((torch.zeros(2, 2, dtype=torch.uint8),), ValueError, r"labels must be .*\[B, H, W\], got uint8 \[2, 2\]"),
        ((torch.zeros(1, 0, 2, dtype=torch.uint8),), ValueError, r"labels must be a non-empty"),
        ((torch.zeros(1, 2, 2, dtype=torch.uint8), 6), ValueError, r"connectivity must be 4 or 8, got 6"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^connected_components: {message}"):
        ops.connected_components(*arguments)


@pytest.mark.parametrize("name", ["connected_components", "find_regions", "segment_mean"])
def test_signature_is_the_references(name):
    assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(reference, name))
