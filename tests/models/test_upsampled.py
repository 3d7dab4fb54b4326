"""Cross entropy and softmax in bands of rows against upsampling the logits as a whole; that upsampling itself."""

import pytest
import torch
import torch.nn.functional as F

from simfast.models.upsampled import upsample, upsampled_segmentation_loss, upsampled_softmax
from simfast.ops import upsampled_bands
from simfast.testing import DEVICES, Calls, assert_within_budget, determinism, smooth_labels

# Feature size, label size: whole numbers of steps between samples or not, one sample, fewer pixels than samples.
SIZES = [((9, 17), (65, 129)), ((9, 17), (70, 131)), ((1, 3), (32, 33)), ((4, 4), (4, 4)), ((5, 3), (2, 1))]


@pytest.fixture(params=[1 << 22, 1500], ids=["one band", "many bands"], autouse=True)
def band(request, monkeypatch):
    monkeypatch.setattr(upsampled_bands, "BAND", request.param)


def make(small, large, dtype=torch.float32, images=2, device="cpu"):
    g = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(images, 7, *small, generator=g)).to(device, dtype)
    return logits, smooth_labels(images, *large, 7, scale=8, ignore=0.2).to(device)


def loss_and_gradient(function, logits, *arguments):
    logits = logits.detach().requires_grad_()
    loss = function(logits, *arguments)
    return loss.detach(), *torch.autograd.grad(3 * loss, logits)


def plain_loss(logits, labels):
    return F.cross_entropy(upsample(logits, labels.shape[1:]).float(), labels.long(), ignore_index=255)


def exact_loss(logits, labels):
    log = upsample(logits.double(), labels.shape[1:]).log_softmax(1)
    valid = labels != 255
    return -log.gather(1, torch.where(valid, labels, 0).long()[:, None])[:, 0][valid].mean()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_the_loss_and_its_gradient_are_those_of_the_upsampled_logits(small, large, device):
    logits, labels = make(small, large, device=device)
    found = loss_and_gradient(lambda *x: upsampled_segmentation_loss(*x)[0], logits, labels)
    honest = loss_and_gradient(plain_loss, logits, labels)
    exact = loss_and_gradient(exact_loss, logits.double(), labels)
    for ours, true, plain in zip(found, exact, honest, strict=True):
        assert_within_budget(ours, true, plain)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_the_softmax_and_its_gradient_are_those_of_the_upsampled_logits(small, large, device):
    logits, _ = make(small, large, device=device)
    weights = torch.randn(2, 7, *large, generator=torch.Generator().manual_seed(1)).to(device)
    found = loss_and_gradient(lambda x: (upsampled_softmax(x, large) * weights).sum(), logits)
    honest = loss_and_gradient(lambda x: (upsample(x, large).softmax(1) * weights).sum(), logits)
    exact = loss_and_gradient(lambda x: (upsample(x, large).softmax(1) * weights).sum(), logits.double())
    for ours, true, plain in zip(found, exact, honest, strict=True):
        assert_within_budget(ours, true, plain)


def test_the_maps_of_both_are_equal_and_a_backward_leaves_them_alone():
    logits, labels = make(*SIZES[0])
    logits.requires_grad_()
    loss, maps = upsampled_segmentation_loss(logits, labels, map_dtype=torch.float32)
    differentiable = upsampled_softmax(logits, labels.shape[1:])
    before = differentiable.detach().clone()
    (loss + differentiable.square().sum()).backward()
    assert torch.equal(differentiable, before)
    torch.testing.assert_close(maps, before, rtol=1e-5, atol=1e-7)
    assert not maps.requires_grad


def test_low_precision_logits_and_maps_cost_one_rounding():
    logits, labels = make(*SIZES[1], torch.bfloat16)
    found = loss_and_gradient(lambda *x: upsampled_segmentation_loss(*x)[0], logits, labels)
    plain = loss_and_gradient(plain_loss, logits.float(), labels)
    assert found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], plain[0])
    torch.testing.assert_close(found[1].float(), plain[1], rtol=2**-8, atol=1e-7)
    maps = upsampled_softmax(logits, labels.shape[1:], torch.bfloat16)
    assert torch.equal(maps, upsampled_softmax(logits.float(), labels.shape[1:]).bfloat16())


def test_where_nothing_is_labelled_the_loss_is_zero():
    logits, labels = make(*SIZES[0])
    loss, gradient = loss_and_gradient(lambda *x: upsampled_segmentation_loss(*x)[0], logits, labels.fill_(255))
    assert loss == 0
    assert not gradient.any()


def test_autocast_does_not_reach_inside():
    logits, labels = make(*SIZES[0])
    expected = upsampled_segmentation_loss(logits, labels)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsampled_segmentation_loss(logits, labels)[0], expected)


def test_labels_of_other_images_are_named():
    logits, labels = make(*SIZES[0])
    with pytest.raises(ValueError, match=r"labels must be \[B, H, W\] .*got \[1, 65, 129\] and \[2, 7, 9, 17\]"):
        upsampled_segmentation_loss(logits, labels[:1])


def test_logits_are_upsampled_by_one_operator_where_nothing_is_differentiated():
    logits = torch.zeros(1, 19, 9, 17, device="meta", requires_grad=True)  # what is not the CPU's is taken for a GPU's
    with determinism(True), torch.no_grad(), Calls() as calls:
        assert upsample(logits, (40, 72)).shape == (1, 19, 40, 72)
    assert calls.names == ["aten.upsample_bilinear2d.default"]
    with determinism(True), Calls() as calls:
        upsample(logits, (40, 72))
    assert len(calls.names) > 10  # what a gradient would need a deterministic backward pass for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_upsampled_alike_with_and_without_a_gradient(dtype):
    logits = torch.randn(2, 19, 9, 17, requires_grad=True, dtype=dtype)
    with torch.no_grad():
        plain = upsample(logits, (40, 73))
    assert torch.equal(plain, upsample(logits, (40, 73)))
