"""What `fuse` and `folded` make of a network."""

import pytest
import torch
from weight_files import saved

from simfast.models import deeplab_v2, load_weights
from simfast.models.fusing import folded, fuse


def moved(arch):
    """A network whose running statistics are not those of the beginning."""
    torch.manual_seed(0)
    model = deeplab_v2(arch, 5, (2, 3)).double()
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) * 0.2 + 0.9 * name.endswith("var"))
    for name, p in model.named_parameters():
        if not p.requires_grad:  # a batch norm's
            p.data.copy_(torch.rand_like(p) + 0.5 * name.endswith("weight"))
    return model


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "vgg16"])
def test_folded_batch_norms_are_the_plain_ones_and_the_network_is_left_alone(arch):
    model, images = moved(arch), torch.randn(1, 3, 33, 41, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model, {"norms"})
    with torch.no_grad():
        found = folded(model)(images)
        fuse(model, set())
        expected = model.eval()(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("parts", [{"norms"}, {"norms", "products"}, {"norms", "products", "head"}], ids=sorted)
def test_a_fused_network_evaluates_as_the_plain_one(arch, parts):
    model, images = moved(arch).eval(), torch.randn(1, 3, 33, 41, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)
        fuse(model, parts)
        for ours, theirs in zip(model(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_released_file_loads_into_a_fused_network(tmp_path):
    theirs, images = moved("resnet18"), torch.randn(1, 3, 33, 41, dtype=torch.float64)
    path = saved(tmp_path, {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()})
    ours = deeplab_v2("resnet18", 5, (2, 3)).double()
    fuse(ours, {"norms", "products", "head"})
    report = load_weights(ours, path, head_dilations=(2, 3))
    assert report.matched == report.total == report.in_file
    with torch.no_grad():
        expected = theirs.eval()(images)
        for found in (ours.eval()(images), folded(ours)(images)):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
