"""Signals that need no labels, against plain NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from simfast.inference.signals import distance, find_signals, label_shares, spread

CPU = torch.device("cpu")


class Lookup(nn.Module):
    """Logits of 3 classes at half size, a fixed function of the image and of the place."""

    def forward(self, images):
        small = images[:, :, ::2, ::2]
        slope = torch.linspace(0, 2, small.shape[3])
        return None, torch.stack([small[:, 0] / 9, small[:, 1] / 9 + slope, small[:, 2] / 9 - slope], 1)


def batches(count, size=(8, 12), seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=rng)
    return [(image[None], None, [str(i)]) for i, image in enumerate(images)]


def upsampled(logits, size):
    """Bilinear with aligned corners, [K, h, w] -> [K, H, W], by np.interp along each side."""
    for axis, new in zip((1, 2), size, strict=True):
        old = logits.shape[axis]
        places = np.linspace(0, old - 1, new)
        logits = np.apply_along_axis(lambda line: np.interp(places, np.arange(len(line)), line), axis, logits)  # noqa: B023
    return logits


def by_hand(model, loader, cap):
    """Confidence, entropy over log K, share over the cap, agreement, shares; in float64."""
    from simfast.models.inputs import normalise

    softmaxes, agree = [], []
    for images, _, _ in loader:
        size = images.shape[2:]
        one, other = (
            upsampled(model(normalise(x, "rgb"))[1][0].double().numpy(), size) for x in (images, images.flip(3))
        )
        exp = np.exp(one - one.max(0))
        softmaxes.append(exp / exp.sum(0))
        agree.append(one.argmax(0) == other.argmax(0)[:, ::-1])
    softmax = np.stack(softmaxes, 1).reshape(3, -1)
    shares = np.bincount(softmax.argmax(0), minlength=3) / softmax.shape[1]
    entropy = -(softmax * np.log(softmax)).sum(0).mean() / np.log(3)
    return softmax.max(0).mean(), entropy, (softmax.max(0) >= cap).mean(), np.mean(agree), shares


def test_the_signals_are_those_of_plain_numpy():
    model, loader = Lookup().train(), batches(3)
    signals, pictures = find_signals(model, loader, "rgb", CPU, 0.6, keep=2)
    confidence, entropy, over_cap, mirror, shares = by_hand(model, loader, 0.6)
    assert 0 < over_cap < 1
    assert 0 < mirror < 1
    assert signals.images == 3
    assert (signals.confidence, signals.entropy) == pytest.approx((confidence, entropy), rel=1e-5)
    assert (signals.over_cap, signals.mirror) == pytest.approx((over_cap, mirror))
    assert signals.shares == pytest.approx(shares)
    assert [(tuple(image.shape), tuple(label.shape)) for image, label in pictures] == [((3, 8, 12), (8, 12))] * 2
    assert torch.equal(pictures[1][0], loader[1][0][0])
    assert model.training


def test_a_batch_tells_what_its_images_do_and_two_halves_what_the_whole_does():
    loader = batches(4)
    whole, _ = find_signals(Lookup(), loader, "rgb", CPU, 0.6)
    together = [(torch.cat([images for images, _, _ in loader]), None, ["x"] * 4)]
    batched, _ = find_signals(Lookup(), together, "rgb", CPU, 0.6)
    parts = []
    find_signals(Lookup(), loader[:1], "rgb", CPU, 0.6, total=lambda sums: parts.append(sums) or sums)
    shared, _ = find_signals(Lookup(), loader[1:], "rgb", CPU, 0.6, total=lambda sums: sums + parts[0])
    for other in (batched, shared):
        assert other.shares == whole.shares
        for name in ("images", "confidence", "entropy", "over_cap", "mirror"):
            assert getattr(other, name) == pytest.approx(getattr(whole, name), rel=1e-12), name


def test_a_network_that_is_sure_and_one_that_knows_nothing():
    class Constant(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, images):
            return None, self.logits[None, :, None, None].expand(len(images), -1, 4, 4)

    sure, _ = find_signals(Constant([0.0, 200.0]), batches(2), "rgb", CPU, 1.0)
    assert (sure.confidence, sure.entropy, sure.over_cap, sure.mirror) == (1, 0, 1, 1)
    assert sure.shares == (0, 1)
    even, _ = find_signals(Constant([3.0] * 4), batches(2), "rgb", CPU, 0.9)
    assert (even.confidence, even.over_cap) == (0.25, 0)
    assert even.entropy == pytest.approx(1)
    assert even.shares == (1, 0, 0, 0)


def test_logits_that_are_not_finite_and_no_batch_are_errors():
    class Broken(Lookup):
        def forward(self, images):
            features, logits = super().forward(images)
            logits[0, 1, 0, 0] = torch.nan
            return features, logits

    with pytest.raises(ValueError, match="find_signals: logits must be finite"):
        find_signals(Broken(), batches(1), "rgb", CPU, 0.9)
    with pytest.raises(ValueError, match="find_signals: loader must give at least one batch"):
        find_signals(Lookup(), [], "rgb", CPU, 0.9)


def test_shares_of_labels_leave_out_what_is_not_labelled():
    maps = [torch.tensor([[0, 0], [2, 255]], dtype=torch.uint8), torch.tensor([[1, 255]], dtype=torch.uint8)]
    assert label_shares(maps, 4) == (0.5, 0.25, 0.25, 0)
    assert label_shares([torch.full((2, 2), 255, dtype=torch.uint8)], 3) == (0, 0, 0)
    assert distance((0.5, 0.25, 0.25), (0.25, 0.25, 0.5)) == 0.25
    assert distance((1, 0), (0, 1)) == 1


@pytest.mark.parametrize(("num", "most", "places"), [(3, 5, [0, 1, 2]), (10, 4, [0, 2, 5, 7]), (4, 0, []), (0, 5, [])])
def test_a_sample_is_spread_evenly(num, most, places):
    assert spread(num, most) == places
