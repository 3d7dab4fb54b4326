"""The step in every mode and precision: same bits from the same seed, same losses as eager float32, no host read."""

import functools
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simfast.config import Config
from simfast.matching import StuffInstanceMatching
from simfast.models.deeplab import BatchNorm
from simfast.models.discriminator import Discriminator
from simfast.testing import DEVICES, GPU, STUFF, THINGS, Calls, needs_gpu, smooth_labels
from simfast.training import capture
from simfast.training import step as step_module
from simfast.training.capture import CannotCapture
from simfast.training.optimizers import poly
from simfast.training.step import Trainer

ON_CPU = [("cpu", "eager", "fp32"), ("cpu", "eager", "bf16"), ("cpu", "eager", "fp16"), ("cpu", "compile", "fp32")]
ON_GPU = [
    ("cuda", mode, precision)
    for mode in ("eager", "compile", "graph", "compile+graph")
    for precision in ("fp32", "bf16", "fp16")
]
KINDS = [*ON_CPU, *(pytest.param(*kind, marks=GPU, id="-".join(kind)) for kind in ON_GPU)]


class Small(nn.Module):
    """DeepLabV2's interface on three convolutions, one of them 1x1."""

    num_features, num_classes = 16, 19

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 5, 4, 2, bias=False), BatchNorm(8)
        self.second, self.head = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 19, 1)

    def forward(self, images, domain="target"):
        features = self.second(self.norm(self.first(images)).relu()).relu()
        return features, self.head(features)

    def classify(self, vectors):
        return F.linear(vectors, self.head.weight[:, :, 0, 0], self.head.bias)

    def parameter_groups(self, lr, head_factor):
        body = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("head")]
        return [{"params": body, "lr": lr}, {"params": list(self.head.parameters()), "lr": head_factor * lr}]


def make_trainer(device="cpu", mode="eager", precision="fp32", memory_format=torch.contiguous_format, **more):
    torch.manual_seed(0)
    size = {"source_size": (96, 64), "target_size": (96, 64), "steps": 50, "schedule_steps": 60}
    config = Config(step_mode=mode, precision=precision, lr=1e-2, lambda_ci=1.0, **size, **more)
    model = Small().to(memory_format=memory_format)
    discriminator = Discriminator(19, width=4) if config.adversarial else None
    matching = None
    if config.method == "aa+sim":
        matching = StuffInstanceMatching(16, STUFF, THINGS, stuff_rows=3, max_instances=2)
    return Trainer(config, model, discriminator, matching, "rgb", torch.device(device))


def batches(count, device="cpu"):
    for seed in range(count):
        g = torch.Generator().manual_seed(seed)
        labels, pseudo = (
            smooth_labels(2, 64, 96, scale=16, ignore=0.1, seed=seed),
            smooth_labels(2, 64, 96, seed=seed + 99),
        )
        noise = torch.randint(60, (2, 3, 64, 96), generator=g)
        source = (labels[:, None] * torch.tensor([9, 5, 3]).view(3, 1, 1) + noise).clamp(max=255).byte()
        target = torch.randint(256, (2, 3, 64, 96), generator=g, dtype=torch.uint8)
        yield tuple(x.to(device) for x in (source, labels, target, pseudo))


def run(trainer, count, first=0):
    """The losses of steps first..count-1, and the state after them."""
    losses = []
    for step, batch in enumerate(batches(count, trainer.device)):
        if step >= first:
            losses.append({name: float(value) for name, value in trainer.step(step, *batch).items()})
    return losses, trainer.state_dict()


def assert_same_bits(first, second):
    leaves = tree_leaves(first), tree_leaves(second)
    assert len(leaves[0]) == len(leaves[1])
    for a, b in zip(*leaves, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def float32_means_float32(monkeypatch):
    """cuDNN's convolutions of float32 are TF32's unless told otherwise: 11 bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("self_training", ["none", "online"])
@pytest.mark.parametrize(("device", "mode", "precision"), KINDS)
def test_the_same_seed_gives_the_same_bits_and_a_resumed_run_too(device, mode, precision, self_training):
    new = functools.partial(make_trainer, device, mode, precision, self_training=self_training, confidence=0.1)
    straight = run(new(), 4)
    assert_same_bits(run(new(), 4), straight)
    _, half = run(new(), 2)
    resumed = new()
    resumed.step(7, *next(batches(1, device)))  # what it was before is gone
    resumed.load_state_dict(half)
    losses, state = run(resumed, 4, first=2)
    assert_same_bits((losses, state), (straight[0][2:], straight[1]))


# Of a loss over 20 steps, of the largest value it had: float32 sums of another order; 8 and 11 bits of mantissa.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}


@pytest.mark.parametrize(("device", "mode", "precision"), KINDS[1:])
def test_every_kind_agrees_with_eager_float32_on_a_cpu_over_20_steps(device, mode, precision):
    expected, _ = run(make_trainer(), 20)
    found, _ = run(make_trainer(device, mode, precision), 20)
    for name in expected[0]:
        plain, ours = (torch.tensor([losses[name] for losses in all_losses]) for all_losses in (expected, found))
        assert plain.max() > 0
        # The arg-max of a pixel may differ, and with it the region that is matched.
        worst = (plain - ours).abs().max() if name not in ("stuff", "instance") else (plain - ours).abs().median()
        assert worst <= TOLERANCE[precision] * plain.max(), name


@pytest.mark.parametrize("kind", ["aa+sim", "aa", "source-only", "stage 2", "fda", "online"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_reads_nothing_back_to_the_host(kind, precision):
    more = {"method": kind} if kind in ("aa", "source-only") else {}
    if kind == "stage 2":
        more = {"stage": 2, "pseudo_labels": "x"}
    if kind == "fda":
        more = {"transfer": "fda", "fda_beta": 0.1}
    if kind == "online":
        more = {"self_training": "online"}
    trainer = make_trainer(precision=precision, **more)
    for step, batch in enumerate(batches(2)):
        with Calls() as calls:
            trainer.step(step, *batch)
        assert calls.host_reads == []
        assert len(calls.names) > 50


@needs_gpu
@pytest.mark.parametrize(("mode", "precision"), [kind[1:] for kind in ON_GPU])
def test_a_step_on_a_gpu_never_waits(mode, precision):
    trainer = make_trainer("cuda", mode, precision)
    for step, batch in enumerate(batches(4, "cuda")):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.step(step, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ----------------------------------------------------------------------------------------------------------------------
# As a graph
# ----------------------------------------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: the same operators again, on the same memory, without the Python between."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record_on_tape(run, warm_up_calls):
    for _ in range(warm_up_calls):
        run()
    with Tape() as tape:
        run()
    return tape.replay


@pytest.fixture
def graphs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(step_module, "resolve_mode", lambda asked, device: "graph" if asked == "auto" else asked)
    monkeypatch.setattr(capture, "record", record_on_tape)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["stage 1", "stage 2", "online"])
def test_a_recorded_step_depends_on_nothing_but_its_inputs_and_its_state(graphs_on_a_cpu, kind, precision):
    more = {"stage 1": {}, "stage 2": {"stage": 2, "pseudo_labels": "x"}, "online": {"self_training": "online"}}[kind]
    more["precision"] = precision
    eager, graph = run(make_trainer(**more), 5), run(make_trainer(mode="graph", **more), 5)
    assert_same_bits(graph, eager)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_captured_step_is_the_eager_one_to_the_bit(precision):
    assert_same_bits(run(make_trainer("cuda", "graph", precision), 5), run(make_trainer("cuda", "eager", precision), 5))


def test_losses_of_a_graph_outlive_the_next_step(graphs_on_a_cpu):
    trainer = make_trainer(mode="graph")
    losses = [trainer.step(step, *batch)["seg"] for step, batch in enumerate(batches(3))]
    assert len({float(loss) for loss in losses}) == 3


def test_an_evaluation_and_a_loaded_state_between_steps_do_not_harm_a_graph(graphs_on_a_cpu):
    trainer, plain = make_trainer(mode="graph"), make_trainer()
    _, state = run(plain, 2)
    run(trainer, 1)
    trainer.load_state_dict(state)
    trainer.model.eval()
    trainer.model(torch.zeros(1, 3, 32, 32))
    trainer.model.train()
    assert_same_bits(run(trainer, 4, first=2), run(plain, 4, first=2))


def test_what_cannot_be_captured_is_eager_with_auto_and_an_error_otherwise(graphs_on_a_cpu, monkeypatch, caplog):
    def fail(run, warm_up_calls):
        run()
        raise RuntimeError("no such luck")

    monkeypatch.setattr(capture, "record", fail)
    asked = make_trainer(mode="graph")
    before = [x.clone() for x in tree_leaves(asked.state_dict()) if isinstance(x, torch.Tensor)]
    with pytest.raises(CannotCapture, match="no such luck"):
        asked.step(0, *next(batches(1)))
    after = [x for x in tree_leaves(asked.state_dict()) if isinstance(x, torch.Tensor)]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == 3  # the three learning rates
    with caplog.at_level(logging.WARNING, "simfast"):
        auto = make_trainer(mode="auto")
        assert_same_bits(run(auto, 3), run(make_trainer(), 3))
    assert auto.mode == "eager"
    assert [record.message for record in caplog.records] == [
        "the step does not fit into a CUDA graph: no such luck; from here on every step is eager"
    ]


def test_a_capture_that_fails_between_two_optimisers_does_not_harm_the_steps_after_it(graphs_on_a_cpu):
    auto = make_trainer(mode="auto", precision="fp16")

    def fail_once(*args, **kwargs):
        del auto.optimizers.discriminator.step
        raise RuntimeError("no such luck")

    auto.optimizers.discriminator.step = fail_once  # the scaler has stepped the other optimiser by then
    assert_same_bits(run(auto, 3), run(make_trainer(precision="fp16"), 3))
    assert auto.mode == "eager"


def test_the_first_error_of_a_failed_capture_is_told(graphs_on_a_cpu, monkeypatch):
    def fail(run, warm_up_calls):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("capture invalidated")  # as torch.cuda.graph does where it leaves

    monkeypatch.setattr(capture, "record", fail)
    with pytest.raises(CannotCapture, match=r"graph: operation not permitted .* \(then: capture invalidated\)$"):
        make_trainer(mode="graph").step(0, *next(batches(1)))


def test_a_batch_of_another_shape_is_eager_with_auto_and_an_error_otherwise(graphs_on_a_cpu, caplog):
    batch = next(batches(1))
    other = tuple(x[:1] for x in batch)
    asked, auto, plain = make_trainer(mode="graph"), make_trainer(mode="auto"), make_trainer()
    asked.step(0, *batch)
    with pytest.raises(CannotCapture, match=r"shapes \['uint8 \[2, 3, 64, 96\]', .*\], got \['uint8 \[1, 3, 64, 96\]'"):
        asked.step(1, *other)
    for trainer in (auto, plain):
        for step, one in enumerate((batch, other, batch)):
            trainer.step(step, *one)
    assert_same_bits(auto.state_dict(), plain.state_dict())
    assert len(caplog.records) == 1


def test_a_graph_needs_a_gpu():
    with pytest.raises(ValueError, match="step_mode: must be eager, compile or auto without a GPU, got 'graph'"):
        make_trainer(mode="graph")
    trainer = make_trainer(mode="auto", precision="auto")
    assert (trainer.mode, trainer.precision) == ("eager", "fp32")


# ----------------------------------------------------------------------------------------------------------------------
# Optimisers
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_learning_rates_follow_the_poly_schedule_on_the_device(device):
    trainer = make_trainer(device)
    batch = next(batches(1, device))
    for step in (0, 31, 49):
        trainer.step(step, *batch)
        both = trainer.optimizers.segmentation, trainer.optimizers.discriminator
        found = [group["lr"] for optimizer in both for group in optimizer.param_groups]
        assert all(rate.device.type == device for rate in found)
        assert [float(rate) for rate in found] == pytest.approx(
            [poly(base, step, trainer.config) for base in (1e-2, 1e-1, 1e-4)], rel=1e-7
        )


@pytest.mark.parametrize("device", DEVICES)
def test_an_overflow_skips_the_update_and_halves_the_scale(device):
    trainer = make_trainer(device, precision="fp16")
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1e30})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for step, batch in enumerate(batches(2, device)):
        trainer.step(step, *batch)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not any(state["momentum_buffer"].any() for state in trainer.optimizers.segmentation.state.values())
    assert all(state["step"] == 0 for state in trainer.optimizers.discriminator.state.values())
    assert trainer.scaler.state_dict()["scale"] == pytest.approx(1e30 / 4)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 1024.0})
    trainer.step(2, *batch)
    for name, p in trainer.model.named_parameters():
        assert torch.isfinite(p).all()
        assert p.requires_grad == (not torch.equal(p, before[name]))  # batch norm's are frozen


def test_state_takes_the_layout_of_the_parameters_it_is_loaded_for():
    plain, other = make_trainer(), make_trainer(memory_format=torch.channels_last)
    run(plain, 2)
    other.load_state_dict(plain.state_dict())
    losses, _ = run(other, 4, first=2)
    expected, _ = run(plain, 4, first=2)
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    for optimizer in (other.optimizers.segmentation, other.optimizers.discriminator):
        for p, state in optimizer.state.items():
            assert all(x.stride() == p.stride() for x in state.values() if x.dim())


def test_a_run_without_momentum_has_no_buffers():
    trainer = make_trainer(momentum=0.0, nesterov=False)
    run(trainer, 2)
    assert not any(trainer.optimizers.segmentation.state.values())
