"""Every way to compute a convolution and its gradients gives what torch gives, but for rounding."""

import pytest
import torch
import torch.nn.functional as F

from simfast.models.convolution_ways import DIRECTIONS, Geometry, compute, convolve
from simfast.testing import DEVICES

# channels in, out, kernel, stride, padding, dilation: of a ResNet-101
LAYERS = {
    "1x1": (24, 16, 1, 1, 0, 1),
    "1x1, stride 2": (24, 16, 1, 2, 0, 1),
    "3x3, dilation 2": (8, 12, 3, 1, 2, 2),
    "3x3, dilation 4": (8, 12, 3, 1, 4, 4),
    "3x3, dilation 1": (8, 12, 3, 1, 1, 1),
    "7x7, stride 2": (3, 8, 7, 2, 3, 1),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def problem(layer, dtype, layout, device):
    """x, weight, a gradient of the result, and the convolution's settings."""
    inside, outside, kernel, *settings = LAYERS[layer]
    stride, padding, dilation = ((n, n) for n in settings)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, inside, 13, 17, generator=g)
    weight = torch.randn(outside, inside, kernel, kernel, generator=g) / (inside * kernel**2) ** 0.5
    grad = torch.randn(F.conv2d(x, weight, None, stride, padding, dilation).shape, generator=g)
    tensors = [t.to(device, dtype).contiguous(memory_format=LAYOUTS[layout]) for t in (x, weight, grad)]
    return tensors, (stride, padding, dilation)


def exact(tensors, settings):
    """By float64, of the same values."""
    x, weight, grad = (t.double().cpu() for t in tensors)
    x.requires_grad_()
    weight.requires_grad_()
    out = F.conv2d(x, weight, None, *settings)
    return dict(zip(DIRECTIONS, (out.detach(), *torch.autograd.grad(out, (x, weight), grad)), strict=True))


def ways_of(tensors, settings):
    x, weight, _ = tensors
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return Geometry(tuple(x.shape), tuple(weight.shape), *settings, x.dtype, channels_last)


@pytest.fixture
def own(monkeypatch):
    """torch's own convolutions on the CPU too, which has oneDNN's in their place."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_all_ways_give_one_result_in_one_layout(layer, dtype, layout, device):
    tensors, settings = problem(layer, dtype, layout, device)
    x, weight, grad = tensors
    geometry, expected = ways_of(tensors, settings), exact(tensors, settings)
    assert ("product" in geometry.ways) == (layer == "1x1")
    assert geometry.ways[0] == "cudnn"
    tolerance = 2**-7 if dtype == torch.bfloat16 else 2**-9 if device == "cuda" else 1e-5
    before = torch.backends.cudnn.enabled
    for way in geometry.ways:
        for direction in DIRECTIONS:
            got = compute(way, direction, geometry, x, weight, None if direction == "forward" else grad)
            size = float(expected[direction].abs().max())
            torch.testing.assert_close(got.double().cpu(), expected[direction], rtol=0, atol=4 * tolerance * size)
            assert got.dtype == dtype
            if direction != "grad_weight":
                assert got.is_contiguous(memory_format=LAYOUTS[layout])
    assert torch.backends.cudnn.enabled == before


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("ways", [("native", "cudnn", "cudnn"), ("cudnn", "product", "native"), ("product",) * 3])
def test_each_direction_is_computed_by_its_own_way_and_only_where_it_is_asked_for(ways):
    (x, weight, grad), settings = problem("1x1", torch.float32, "channels-last", "cpu")
    called = []

    def run(direction, geometry, inputs):
        called.append(direction)
        return compute(ways[DIRECTIONS.index(direction)], direction, geometry, *inputs)

    expected = exact((x, weight, grad), settings)
    for asked in ((True, True), (True, False), (False, True)):
        called.clear()
        inputs = x.clone().requires_grad_(asked[0]), weight.clone().requires_grad_(asked[1])
        out = convolve(*inputs, *settings, run)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = torch.autograd.grad(out, wanted, grad)
        names = [name for name, needed in zip(DIRECTIONS[1:], asked, strict=True) if needed]
        assert called == ["forward", *names]
        for name, got in zip(names, found, strict=True):
            torch.testing.assert_close(got.double(), expected[name], rtol=1e-5, atol=1e-5)
    called.clear()
    with torch.no_grad():
        convolve(x, weight, *settings, run)
    assert called == ["forward"]
