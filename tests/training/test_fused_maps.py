"""The step with `fuse: maps`: the plain step's losses and gradients, the same bits from the same seed, no host read."""

import functools

import pytest
import torch
from test_step_modes import KINDS, TOLERANCE, assert_same_bits, batches, make_trainer, run

from simfast.testing import Calls

SETTINGS = {
    "aa+sim": {},
    "aa": {"method": "aa"},
    "source-only": {"method": "source-only"},
    "stage 2": {"stage": 2, "pseudo_labels": "x"},
    "online": {"self_training": "online", "confidence": 0.1},
}
PRECISIONS = ["fp32", "bf16", "fp16"]
# Of a gradient's norm: float32 sums of another order; 8 and 11 bits of mantissa, which round at other places.
OF_GRADIENTS = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def fused(*arguments, **more):
    return make_trainer(*arguments, fuse=("maps",), **more)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_and_gradients_are_the_plain_steps(setting, precision):
    trainers = [make(precision=precision, **SETTINGS[setting]) for make in (make_trainer, fused)]
    for step, batch in enumerate(batches(20)):
        losses = [trainer.step(step, *batch) for trainer in trainers]
        for name, plain in losses[0].items():
            torch.testing.assert_close(losses[1][name], plain, rtol=OF_GRADIENTS[precision], atol=1e-6)
        networks = ([x for x in (t.model, t.discriminator) if x is not None] for t in trainers)
        # The discriminator's gradients of source and target nearly cancel, and leave more of what rounding did to each.
        allowed = OF_GRADIENTS[precision] * torch.tensor([1, 20])
        for plain, ours, share in zip(*networks, allowed, strict=False):
            pairs = zip(plain.parameters(), ours.parameters(), strict=True)
            pairs = [(p.grad, q.grad) for p, q in pairs if p.grad is not None]
            whole, other = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
            assert (other - whole).norm() <= share * whole.norm(), step
        # So that the differences do not grow from step to step.
        trainers[1].load_state_dict(trainers[0].state_dict())


@pytest.mark.parametrize(("device", "mode", "precision"), KINDS)
def test_every_kind_agrees_with_eager_float32_on_a_cpu_over_20_steps(device, mode, precision):
    expected, _ = run(make_trainer(), 20)
    found, _ = run(fused(device, mode, precision), 20)
    for name in expected[0]:
        plain, ours = (torch.tensor([losses[name] for losses in all_losses]) for all_losses in (expected, found))
        worst = (plain - ours).abs().max() if name not in ("stuff", "instance") else (plain - ours).abs().median()
        assert worst <= TOLERANCE[precision] * plain.max(), name


@pytest.mark.parametrize(("device", "mode", "precision"), KINDS)
def test_the_same_seed_gives_the_same_bits_and_a_resumed_run_too(device, mode, precision):
    new = functools.partial(fused, device, mode, precision, **SETTINGS["stage 2"] | SETTINGS["online"])
    straight = run(new(), 4)
    assert_same_bits(run(new(), 4), straight)
    _, half = run(new(), 2)
    resumed = new()
    resumed.load_state_dict(half)
    losses, state = run(resumed, 4, first=2)
    assert_same_bits((losses, state), (straight[0][2:], straight[1]))


def test_a_checkpoint_fits_both():
    plain, ours = make_trainer(), fused()
    _, state = run(ours, 2)
    plain.load_state_dict(state)
    assert_same_bits(plain.model.state_dict(), state["model"])
    assert_same_bits(plain.discriminator.state_dict(), state["discriminator"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_reads_nothing_back_to_the_host(setting):
    trainer = fused(**SETTINGS[setting])
    names = []
    for step, batch in enumerate(batches(2)):
        with Calls() as calls:
            trainer.step(step, *batch)
        assert calls.host_reads == []
        names += calls.names
    assert "simfast.upsampled_cross_entropy.default" in names
    assert ("simfast.upsampled_softmax.default" in names) == (trainer.discriminator is not None)
    assert "simfast.upsampled_cross_entropy_backward.default" in names
