"""Both kinds of adversarial loss against their definitions; upsampled logits. Cross entropy: test_upsampled.py."""

import numpy as np
import pytest
import torch

from simfast.models.upsampled import upsample
from simfast.testing import Calls
from simfast.training.losses import adversarial_loss


@pytest.mark.parametrize(("domain", "label"), [("source", 0.0), ("target", 1.0)])
def test_ls_gan_is_the_mean_squared_distance_to_the_domains_label(domain, label):
    judgement = torch.tensor([[[[0.5, -2.0], [3.0, 1.0]]]], requires_grad=True)
    loss = adversarial_loss(judgement, domain, "ls-gan")
    outputs = judgement.detach().numpy()
    assert loss.item() == np.mean((outputs - label) ** 2)
    loss.backward()
    np.testing.assert_array_equal(judgement.grad.numpy(), 2 * (outputs - label) / 4)


def test_ls_gan_asks_for_raw_outputs_and_bce_for_logits():
    certain = torch.tensor([1.0])  # as an output it is the target's label; as a logit it is 73 % sure
    assert adversarial_loss(certain, "target", "ls-gan") == 0
    assert adversarial_loss(certain, "target") == adversarial_loss(certain, "target", "bce")
    assert adversarial_loss(certain, "target").item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("kind", ["bce", "ls-gan"])
def test_adversarial_losses_are_float32_whatever_the_input(kind):
    judgement = torch.randn(2, 1, 3, 3).bfloat16()
    loss = adversarial_loss(judgement, "source", kind)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, adversarial_loss(judgement.float(), "source", kind))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_logits_are_upsampled_by_one_operator_where_nothing_is_differentiated(deterministic):
    logits = torch.zeros(1, 19, 9, 17, device="meta", requires_grad=True)  # what is not the CPU's is taken for a GPU's
    with torch.no_grad(), Calls() as calls:
        assert upsample(logits, (40, 72)).shape == (1, 19, 40, 72)
    assert calls.names == ["aten.upsample_bilinear2d.default"]
    with Calls() as calls:
        upsample(logits, (40, 72))
    assert len(calls.names) > 10  # what a gradient would need a deterministic backward pass for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_upsampled_alike_with_and_without_a_gradient(dtype):
    logits = torch.randn(2, 19, 9, 17, requires_grad=True, dtype=dtype)
    with torch.no_grad():
        plain = upsample(logits, (40, 73))
    assert torch.equal(plain, upsample(logits, (40, 73)))


def test_a_wrong_kind_or_domain_is_named():
    judgement = torch.zeros(1)
    with pytest.raises(ValueError, match="kind must be one of bce, ls-gan, got 'wgan'"):
        adversarial_loss(judgement, "source", "wgan")
    with pytest.raises(ValueError, match="domain must be one of source, target, got 'city'"):
        adversarial_loss(judgement, "city")
