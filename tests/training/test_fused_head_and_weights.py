"""Steps with the head as one product, and with 16-bit copies of the weights, beside the plain ones."""

import functools

import pytest
import torch
from test_step_modes import (
    GPU,
    TOLERANCE,
    assert_same_bits,
    batches,
    deterministic,  # noqa: F401  a fixture of every test
    graphs_on_a_cpu,  # noqa: F401  a fixture
    make_trainer,
    run,
)

from simfast.config import Config
from simfast.models import deeplab_v2
from simfast.models.deeplab import DilatedHead
from simfast.models.discriminator import Discriminator
from simfast.runtime import distributed
from simfast.testing import Calls, needs_gpu
from simfast.training.step import Trainer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STAGE_2 = {"stage": 2, "pseudo_labels": "x"}
KINDS = {"stage 1": {}, "stage 2": STAGE_2, "online": {"self_training": "online"}, "aa": {"method": "aa"}}
HALVES = ["bf16", "fp16"]


def deep(fuse, precision="fp32", mode="eager", device="cpu", **more):
    """ResNet-18 with the dilated head, at the small size, without matching."""
    torch.manual_seed(0)
    more = {"method": "aa", "fuse": fuse, "steps": 50, "schedule_steps": 60, "batch_norm": "frozen"} | more
    config = Config(step_mode=mode, precision=precision, source_size=(96, 64), target_size=(96, 64), lr=1e-3, **more)
    model = deeplab_v2("resnet18", 19, batch_norm=config.batch_norm)
    discriminator = Discriminator(19, width=4) if config.adversarial else None
    return Trainer(config, model, discriminator, None, "rgb", torch.device(device))


def gradients(trainer):
    networks = [net for net in (trainer.model, trainer.discriminator) if net is not None]
    return {name: p.grad for net in networks for name, p in net.named_parameters() if p.requires_grad}


def assert_close(found, expected, share):
    """Every gradient within a share of its own largest value, and of a hundredth of the largest of all."""
    assert found.keys() == expected.keys()
    most = max(float(x.abs().max()) for x in expected.values())
    for name, theirs in expected.items():
        assert found[name].dtype == theirs.dtype == torch.float32
        assert float((found[name] - theirs).abs().max()) <= share * (float(theirs.abs().max()) + most / 100), name


# ----------------------------------------------------------------------------------------------------------------------
# weights
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_the_weights_give_the_plain_steps_losses_and_gradients(kind, precision):
    plain, copied = (make_trainer(precision=precision, fuse=fuse, **KINDS[kind]) for fuse in (("none",), ("weights",)))
    for batch in batches(1):
        # Up to the first update nothing differs, but for the order in which the head's two gradients are added.
        losses = [trainer.step(0, *batch) for trainer in (plain, copied)]
    assert_same_bits(*losses)
    assert_close(gradients(copied), gradients(plain), 1e-5)
    expected, found = run(plain, 20, first=1)[0], run(copied, 20, first=1)[0]
    for name in expected[0]:
        theirs, ours = (torch.tensor([losses[name] for losses in all_losses]) for all_losses in (expected, found))
        worst = (theirs - ours).abs().max() if name not in ("stuff", "instance") else (theirs - ours).abs().median()
        assert worst <= TOLERANCE[precision] * theirs.max(), name


def test_without_matching_copies_change_no_bit():
    for precision in HALVES:
        plain, copied = (make_trainer(precision=precision, method="aa", fuse=(fuse,)) for fuse in ("none", "weights"))
        assert_same_bits(run(copied, 20), run(plain, 20))


def test_float32_has_no_copies():
    trainer = make_trainer(fuse=("weights",))
    assert trainer.networks._copies is None
    assert_same_bits(run(trainer, 3), run(make_trainer(), 3))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_with_copies_is_the_eager_one_to_the_bit(graphs_on_a_cpu, kind, precision):  # noqa: F811
    more = KINDS[kind] | {"precision": precision, "fuse": ("weights",)}
    assert_same_bits(run(make_trainer(mode="graph", **more), 5), run(make_trainer(**more), 5))


def test_a_run_with_copies_goes_on_from_a_plain_runs_state():
    new = functools.partial(make_trainer, precision="bf16", method="aa")
    straight = run(new(), 4)
    _, half = run(new(), 2)
    copied = new(fuse=("weights",))
    copied.step(7, *next(batches(1)))
    copied.model.eval()
    copied.load_state_dict(half)
    found = run(copied, 4, first=2)
    assert copied.state_dict().keys() == half.keys()
    assert_same_bits(found, (straight[0][2:], straight[1]))
    assert_same_bits(run(new(fuse=("weights",)), 3), run(new(fuse=("weights",)), 3))


def test_the_generators_losses_leave_the_discriminator_alone():
    trainer, seen = make_trainer(precision="bf16", fuse=("weights",)), []
    backward = trainer.networks.gather_gradients

    def gather():
        backward()
        seen.append([p.grad is not None for p in trainer.discriminator.parameters()])

    trainer.networks.gather_gradients = gather
    for step, batch in enumerate(batches(2)):
        trainer.optimizers.discriminator.zero_grad()
        trainer.step(step, *batch)
    ones = len(seen[0])
    assert seen == 2 * [[False] * ones, [False] * ones, [True] * ones, [True] * ones]


def test_outside_of_a_step_and_after_an_error_the_parameters_are_what_runs(monkeypatch):
    trainer = make_trainer(precision="bf16", fuse=("weights",), method="aa")
    batch = next(batches(1))
    plain = make_trainer(precision="bf16", method="aa")
    run(trainer, 1)
    run(plain, 1)
    terms = trainer.source_terms(*batch[:2])
    terms.losses["seg"].backward()
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)

    def fail(*args):
        raise RuntimeError("no such luck")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.networks, "gather_gradients", fail)
        with pytest.raises(RuntimeError, match="no such luck"):
            trainer.step(1, *batch)
    plain.source_terms(*batch[:2])  # moves running statistics
    assert_same_bits(run(trainer, 4, first=1), run(plain, 4, first=1))


def test_a_step_casts_its_weights_once():
    counts = {}
    for fuse in ("none", "weights"):
        trainer = make_trainer(precision="bf16", fuse=(fuse,), method="aa")
        run(trainer, 1)
        with Calls() as calls:
            trainer.step(1, *next(batches(1)))
        counts[fuse] = sum("_to_copy" in str(name) for name in calls.names)
    # Casts of 3 weights and 2 biases in 2 passes, of the discriminator's 10 in 3, and of their gradients.
    assert counts["weights"] <= counts["none"] - 2 * (2 * 5) - 3 * 10


def test_several_processes_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ValueError, match=r"^fuse: must be without weights in several processes, got head, weights"):
        make_trainer(precision="bf16", fuse=("head", "weights"))


# ----------------------------------------------------------------------------------------------------------------------
# head
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilations", [(6, 12, 18, 24), (6, 12), (1,)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_head_as_one_product_has_the_plain_ones_logits_and_gradients(dilations, memory_format):
    torch.manual_seed(0)
    head = DilatedHead(32, 19, dilations).to(memory_format=memory_format)
    features = torch.randn(2, 32, 9, 14).to(memory_format=memory_format).requires_grad_()
    grad = torch.randn(2, 19, 9, 14)
    plain = head(features)
    expected = torch.autograd.grad(plain, [features, *head.parameters()], grad)
    head.fused = True
    fused = head(features)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(fused, [features, *head.parameters()], grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for dtype in DTYPES.values():
        with torch.autocast("cpu", dtype):
            logits = head(features)
        assert logits.dtype == dtype
        assert (logits - plain).abs().max() <= 8 * torch.finfo(dtype).eps * plain.abs().max()


def test_the_head_in_float64_has_the_gradients_of_its_values():
    head = DilatedHead(3, 2, (1, 2)).double()
    head.fused = True
    names = list(dict(head.named_parameters()))

    def call(features, *values):
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (features,))

    features = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (features, *head.parameters()))


def test_a_fused_heads_state_is_the_plain_ones():
    plain, fused = deep(("none",)), deep(("head",))
    _, state = run(plain, 1)
    fused.load_state_dict(state)
    assert fused.model.state_dict().keys() == plain.model.state_dict().keys()
    images = torch.randn(1, 3, 64, 96)
    for trainer in (plain, fused):
        trainer.model.eval()
    torch.testing.assert_close(fused.model(images)[1], plain.model(images)[1], rtol=1e-4, atol=1e-4)
    vectors = torch.randn(3, 512)
    assert torch.equal(fused.model.classify(vectors), plain.model.classify(vectors))


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", *HALVES])
@pytest.mark.parametrize("mode", [pytest.param("graph", marks=GPU), pytest.param("compile+graph", marks=GPU)])
def test_both_on_a_gpu_agree_with_the_plain_step(mode, precision):
    expected = run(deep(("none",), precision, device="cuda"), 5)[0]
    found = run(deep(("head", "weights"), precision, mode, "cuda"), 5)[0]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE[precision])
