"""The step with each of its parts fused: what the plain one loses and learns, the same bits from the same seed."""

import functools

import pytest
import torch
from test_step_modes import assert_same_bits, batches
from torch import nn

from simfast.config import Config
from simfast.matching import StuffInstanceMatching
from simfast.models.deeplab import DeepLabV2, DilatedHead
from simfast.models.discriminator import Discriminator
from simfast.models.layers import BasicBlock, BatchNorm, Bottleneck, Stage
from simfast.testing import STUFF, THINGS, determinism
from simfast.training.step import Trainer

FUSED = {
    "norms": {"fuse": ("norms",)},
    "one launch": {"fuse": ("cooperative",)},
    "products": {"fuse": ("products",)},
    "low memory": {"memory": "low"},
    "low memory, products": {"fuse": ("products",), "memory": "low"},
    "head": {"fuse": ("head",)},
    "all": {"fuse": ("all",)},
    "all, low memory": {"fuse": ("all",), "memory": "low"},
}
KINDS = {
    "paper": {},
    "released": {"gate": "released", "fill_rule": "full"},
    "stage 2": {"stage": 2, "pseudo_labels": "x"},
    "online": {"self_training": "online", "confidence": 0.1},
    "frozen": {"batch_norm": "frozen"},
    "per-domain": {"batch_norm": "per-domain"},
    "ls-gan, fda": {"adversary": "ls-gan", "transfer": "fda", "fda_beta": 0.1},
    "target-only": {"method": "target-only"},
}


class Narrow(nn.Module):
    """DeepLabV2's interface on its own blocks, a few channels wide."""

    num_features, num_classes = 32, 19

    def __init__(self, batch_norm: str):
        super().__init__()
        self.batch_norm = batch_norm
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 5, 4, 2, bias=False), BatchNorm(8)
        # With and without a stride, a dilation and other channels on the residual's way.
        self.layer1 = Stage(Bottleneck(8, 4, 1, 1, 1, False), Bottleneck(16, 4, 1, 1, 1, False))
        self.layer2 = Stage(BasicBlock(16, 16, 2, 1, 1, False), BasicBlock(16, 16, 1, 2, 2, False))
        self.layer3 = Stage(Bottleneck(16, 8, 1, 2, 1, True), Bottleneck(32, 8, 1, 2, 2, True))
        self.head = DilatedHead(32, 19, (2, 3))
        self.train()

    def forward(self, images, domain="target"):
        track = self.batch_norm != "per-domain" or domain == "target"
        first = self.bn1(self.conv1(images), track, act=True)
        pair = first, first
        for stage in (self.layer1, self.layer2, self.layer3):
            pair = stage(pair, track)
        features, again = pair
        return features, self.head(again)

    def train(self, mode=True):
        super().train(mode)
        if self.batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    classify = DeepLabV2.classify

    def parameter_groups(self, lr, head_factor):
        body = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("head")]
        return [{"params": body, "lr": lr}, {"params": list(self.head.parameters()), "lr": head_factor * lr}]


@pytest.fixture(autouse=True)
def deterministic():
    with determinism(True):
        yield


def make_trainer(precision="fp32", mode="eager", **settings):
    torch.manual_seed(0)
    size = {"source_size": (96, 64), "target_size": (96, 64), "steps": 50, "schedule_steps": 60}
    config = Config(step_mode=mode, precision=precision, lr=1e-2, lambda_ci=0.1, **size, **settings)
    model = Narrow(config.batch_norm)
    discriminator = Discriminator(19, width=4) if config.adversarial else None
    matching = None
    if config.method == "aa+sim":
        matching = StuffInstanceMatching(32, STUFF, THINGS, 3, 2, config.gate, config.fill_rule)
    return Trainer(config, model, discriminator, matching, "rgb", torch.device("cpu"))


def stepped(trainer, step, batch):
    """Losses and all gradients of a step."""
    losses = trainer.step(step, *batch)
    networks = [network for network in (trainer.model, trainer.discriminator) if network is not None]
    gradients = [p.grad.clone() for network in networks for p in network.parameters() if p.grad is not None]
    return {name: float(loss) for name, loss in losses.items()}, gradients


def distance(first, second):
    """Of gradients, relative to the second ones."""
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(first, second, strict=True))
    return (apart / sum(float(b.double().square().sum()) for b in second)) ** 0.5


def same(ours, plain, tolerance):
    for name, value in plain.items():
        assert ours[name] == pytest.approx(value, rel=tolerance, abs=tolerance * 1e-2), name


@pytest.mark.parametrize("fused", FUSED)
def test_each_of_20_steps_loses_and_learns_what_the_plain_one_does(fused):
    plain, ours = make_trainer(), make_trainer(**FUSED[fused])
    for step, batch in enumerate(batches(20)):
        ours.load_state_dict(plain.state_dict())
        (expected, gradients), (found, own) = (stepped(trainer, step, batch) for trainer in (plain, ours))
        same(found, expected, 1e-4)
        # float32's sums in another order, through a network that may amplify them.
        assert distance(own, gradients) <= 2e-3
        for (name, buffer), known in zip(ours.model.named_buffers(), plain.model.buffers(), strict=True):
            torch.testing.assert_close(buffer, known, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["usual", "low"])
def test_so_does_every_kind_of_step(kind, memory):
    plain = make_trainer(**KINDS[kind])
    ours = make_trainer(**KINDS[kind], fuse=("all",), memory=memory)
    for step, batch in enumerate(batches(4)):
        ours.load_state_dict(plain.state_dict())
        (expected, gradients), (found, own) = (stepped(trainer, step, batch) for trainer in (plain, ours))
        assert found.keys() == expected.keys()
        same(found, expected, 1e-3)
        assert distance(own, gradients) <= 5e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_16_bits_each_of_20_steps_is_as_near_to_float32_as_the_plain_one(precision):
    exact = make_trainer()
    others = [make_trainer(precision=precision, **more) for more in ({}, FUSED["all"])]
    errors = []
    for step, batch in enumerate(batches(20)):
        for trainer in others:
            scaler = {} if trainer.scaler is None else {"scaler": trainer.scaler.state_dict()}
            trainer.load_state_dict(exact.state_dict() | scaler)
        gradients = [stepped(trainer, step, batch)[1] for trainer in (exact, *others)]
        errors.append([distance(own, gradients[0]) for own in gradients[1:]])
    plain, ours = torch.tensor(errors).unbind(1)
    assert ours.median() <= 1.3 * plain.median()
    assert ours.max() <= 2 * plain.max()


@pytest.mark.parametrize("fused", ["all", "all, low memory"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits_and_a_resumed_run_too(fused, precision):
    new = functools.partial(make_trainer, precision=precision, **FUSED[fused])

    def run(trainer, first, last):
        return [stepped(trainer, step, batch) for step, batch in enumerate(batches(last)) if step >= first]

    straight = new()
    expected = run(straight, 0, 4)
    again = new()
    assert_same_bits(run(again, 0, 2), expected[:2])
    resumed = new()
    resumed.load_state_dict(again.state_dict())
    assert_same_bits(run(resumed, 2, 4), expected[2:])
    assert_same_bits(resumed.state_dict(), straight.state_dict())


def test_a_compiled_step_with_all_of_it_and_low_memory_is_the_eager_one():
    more = FUSED["all, low memory"] | {"precision": "bf16", "method": "aa"}
    eager, compiled = make_trainer(**more), make_trainer(mode="compile", **more)
    for step, batch in enumerate(batches(2)):
        (expected, gradients), (found, own) = (stepped(trainer, step, batch) for trainer in (eager, compiled))
        same(found, expected, 2e-2)
        assert distance(own, gradients) <= 0.2  # it rounds to 16 bits at other places


def test_a_checkpoint_does_not_tell_what_was_fused():
    plain, ours = make_trainer(), make_trainer(fuse=("all",), memory="low")
    assert plain.state_dict().keys() == ours.state_dict().keys()
    assert list(plain.model.state_dict()) == list(ours.model.state_dict())
    plain.load_state_dict(ours.state_dict())
