"""The library's operations on the stub GPU: their host side, for every kind of input that the others do not have."""

import pytest
import stub_gpu
import torch

from simfast import ops
from simfast.models.upsampled import upsampled_segmentation_loss, upsampled_softmax
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import STUFF, THINGS

# An argument that is 1 is a constant to Triton, and one that 16 divides is known to be that.
NEAREST = [(1, 1, 1), (1, 2, 2), (16, 1, 2), (16, 50, 1), (2048, 1, 118), (2048, 2, 1), (2048, 50, 118), (2049, 3, 33)]
SIZES = [(1, 1), (7, 5), (65, 129), (91, 161), (512, 1024), (1024, 2048)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_maps_of_every_size_are_launched(size, dtype, seen):
    labels = torch.zeros(2, *size, dtype=dtype, device="cuda")
    segments, areas = ops.find_regions(labels, STUFF, THINGS)
    ids, counts = ops.connected_components(labels)
    assert segments.shape == ids.shape == labels.shape
    assert all(x.is_cuda for x in (segments, areas, ids, counts))
    assert any("components" in name for name in seen().names("kernel"))
    assert any("regions" in name for name in seen().names("kernel"))
    assert seen().total("sync") == 0
    assert seen().violations == []


@pytest.mark.parametrize("size", SIZES[3:5], ids=lambda size: "x".join(map(str, size)))
def test_more_classes_than_a_launch_takes_are_launched_one_after_the_other_without_a_wait(size, seen):
    labels = torch.zeros(2, *size, dtype=torch.int64, device="cuda")
    segments, areas = ops.find_regions(labels, range(100), range(100, 255), max_instances=3)
    assert (segments.shape, areas.shape) == (labels.shape, (2, 100 + 3 * 155))
    assert sum("regions" in name for name in seen().names("kernel").elements()) >= 4
    assert seen().total("sync") == 0
    assert seen().violations == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 64, 7, 5), (1, 2048, 91, 161)], ids=str)
def test_segment_mean_and_its_gradient_are_launched(shape, dtype, layout, seen):
    features = torch.zeros(shape, dtype=dtype, device="cuda").contiguous(memory_format=layout).requires_grad_()
    segments = torch.zeros(shape[0], *shape[2:], dtype=torch.int32, device="cuda")
    ops.segment_mean(features, segments, 118).sum().backward()
    assert features.grad.stride() == features.stride()
    assert sum("segment_mean" in name for name in seen().names("kernel")) >= 2
    assert seen().total("sync") == 0
    assert seen().violations == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "rows", "queries"), NEAREST)
def test_nearest_compiles_and_is_launched(width, rows, queries, dtype, seen):
    x = torch.zeros(queries, width, device="cuda", requires_grad=True)
    classes = torch.zeros(queries, dtype=torch.int64, device="cuda")
    bank = torch.zeros(3, rows, width, dtype=dtype, device="cuda")
    filled = torch.ones(3, dtype=torch.int64, device="cuda")
    for distances, nearest in (
        ops.nearest_l1(x, classes, bank, filled),
        nearest_l1_ragged(x, classes, bank.flatten(0, 1), filled * rows, filled, rows),
    ):
        distances.sum().backward()
        assert distances.shape == nearest.shape == (queries,)
    assert seen().total("triton") >= 6
    assert seen().total("sync") == 0
    assert seen().violations == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 64, 7, 5, 256), (1, 1024, 91, 161, 256)], ids=str)
def test_a_convolution_with_statistics_is_one_launch(shape, dtype, seen):
    *size, channels = shape
    x = torch.zeros(size, dtype=dtype, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.zeros(channels, size[1], 1, 1, dtype=dtype, device="cuda", requires_grad=True)
    stub_gpu.reset()
    out, partials, rows = ops.conv1x1_statistics(x, weight)
    assert (seen().total("triton"), seen().launches) == (1, 1)
    assert partials.shape == (2, -(-out.numel() // channels // rows), channels)
    out.sum().backward()
    assert x.grad.stride() == x.stride()
    assert seen().total("sync") == 0
    assert seen().violations == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (720, 1280)], ids=str)
@pytest.mark.parametrize("num_classes", [2, 19, 40])
def test_fused_maps_take_two_launches_one_for_the_gradient_one_and_two(num_classes, size, dtype, seen):
    logits = torch.zeros(1, num_classes, size[0] // 8 + 1, size[1] // 8 + 1, dtype=dtype, device="cuda")
    labels = torch.zeros(1, *size, dtype=torch.uint8, device="cuda")
    logits.requires_grad_()
    found = []

    def launches(run):
        stub_gpu.reset()
        result = run()
        assert seen().launches == seen().total("triton")
        assert seen().total("memset", "memcpy", "sync", "malloc") == seen().total("malloc")
        assert seen().violations == []
        found.append(seen().total("triton"))
        return result

    one = torch.ones((), device="cuda")
    loss, maps = launches(lambda: upsampled_segmentation_loss(logits, labels, map_dtype=dtype, fused=True))
    grad = torch.empty_like(maps)
    launches(lambda: torch.autograd.grad(loss, logits, one))
    softmax = launches(lambda: upsampled_softmax(logits, size, dtype, fused=True))
    launches(lambda: torch.autograd.grad(softmax, logits, grad))
    assert found == [2, 1, 1, 2]
    assert maps.is_contiguous(memory_format=torch.channels_last)
