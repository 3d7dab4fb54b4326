"""Both kinds of adversarial loss against their definitions."""

import numpy as np
import pytest
import torch

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


def test_a_wrong_kind_or_domain_is_named():
    judgement = torch.zeros(1)
    with pytest.raises(ValueError, match="kind must be one of bce, ls-gan, got 'wgan'"):
        adversarial_loss(judgement, "source", "wgan")
    with pytest.raises(ValueError, match="domain must be one of source, target, got 'city'"):
        adversarial_loss(judgement, "city")
