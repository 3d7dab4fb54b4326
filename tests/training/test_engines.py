"""Ways of convolutions: the fastest by a margin, timed once for each kind of layer, the same in a resumed run."""

import contextlib
import json
import logging

import pytest
import torch
import torch.nn.functional as F
from kept_runs import RESUMED_ALIKE, assert_same
from running import train
from test_step_modes import assert_same_bits, make_trainer
from test_step_modes import run as run_steps

from simfast.models import checkpoint
from simfast.models.convolution_ways import DIRECTIONS
from simfast.testing import determinism, needs_gpu
from simfast.training import networks
from simfast.training.engines import NAME, Engines, measured_engines

HERE = {"gpu": "none", "torch": "2", "cudnn": 9}


class Clock:
    """Takes a call, and tells the next of some times."""

    def __init__(self, *times):
        self.times, self.calls = times, 0

    def __call__(self, run):
        run()
        self.calls += 1
        time = self.times[(self.calls - 1) % len(self.times)]
        if time is None:
            raise torch.OutOfMemoryError("no memory for columns")
        return time


def layer(engines, **more):
    """A 1x1 convolution and its gradients under engines."""
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=g).requires_grad_() for shape in ((1, 4, 5, 6), (3, 4, 1, 1)))
    with engines:
        out = F.conv2d(x, weight, **more)
    return out, *torch.autograd.grad(out.float().square().sum(), (x, weight))


def found(engines, path):
    engines.keep_in(path)
    engines.save()
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("times", "way"),
    [
        ((1.0, 2.0, 3.0), "cudnn"),
        ((1.0, 0.96, 0.97), "cudnn"),  # less than 5 % is noise
        ((1.0, 0.94, 0.97), "native"),
        ((1.0, 0.94, 0.5), "product"),
        ((0.0, 0.0, 0.0), "cudnn"),
        ((1.0, None, 2.0), "cudnn"),
    ],
)
def test_a_way_must_win_by_more_than_noise(times, way, tmp_path):
    clock = Clock(*times)
    engines = Engines(HERE, clock)
    layer(engines)
    assert clock.calls == 9
    content = found(engines, tmp_path / NAME)
    assert {name: content[name] for name in HERE} == HERE
    ((kind, chosen),) = content["layers"].items()
    assert kind.startswith("float32 [1, 4, 5, 6] contiguous, weight [3, 4, 1, 1], stride (1, 1)")
    assert {direction: chosen[direction]["way"] for direction in DIRECTIONS} == dict.fromkeys(DIRECTIONS, way)
    known = {name: time for name, time in zip(("cudnn", "native", "product"), times, strict=True) if time is not None}
    assert chosen["forward"]["ms"] == known


def test_no_memory_for_the_usual_way_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        layer(Engines(HERE, Clock(None)))


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0, 3.0])], ids=["no bias", "bias"])
@pytest.mark.parametrize("times", [(1, 2, 3), (3, 1, 2), (3, 2, 1)], ids=["cudnn", "native", "product"])
def test_results_and_gradients_are_torchs(times, bias):
    for autocast in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with autocast:
            got, want = layer(Engines(HERE, Clock(*times)), bias=bias), layer(contextlib.nullcontext(), bias=bias)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            assert a.abs().sum() > 0
            torch.testing.assert_close(a, b, rtol=2**-6 if got[0].dtype == torch.bfloat16 else 1e-5, atol=2e-2)


def test_a_kind_of_layer_is_timed_once_and_others_for_themselves():
    clock = Clock(1.0)
    engines = Engines(HERE, clock)
    for _ in range(3):
        layer(engines)
    assert clock.calls == 9
    layer(engines, padding=1)
    assert clock.calls == 9 + 6  # not a plain product
    layer(engines, stride=(2, 1))
    assert clock.calls == 9 + 6 + 6
    with torch.no_grad(), engines:
        F.conv2d(torch.zeros(1, 4, 9, 9), torch.zeros(3, 4, 3, 3))
        F.conv2d(torch.zeros(1, 4, 9, 9), torch.zeros(4, 1, 3, 3), groups=4)  # is left to torch
        F.conv2d(torch.zeros(1, 4, 9, 9), torch.zeros(3, 4, 3, 3), padding="same")
        F.relu(torch.zeros(3))
    assert clock.calls == 9 + 6 + 6 + 2


def test_what_was_kept_is_not_timed_again(tmp_path):
    engines = Engines(HERE, Clock(3.0, 2.0, 1.0))
    layer(engines)
    first = found(engines, tmp_path / NAME)
    clock = Clock(1.0)
    again = Engines(HERE, clock)
    again.keep_in(tmp_path / "other", tmp_path / "missing", tmp_path / NAME)
    layer(again)
    assert clock.calls == 0
    again.save()
    assert json.loads((tmp_path / "other").read_text()) == first
    layer(again, padding=1)  # another picture size, say
    again.save()
    assert len(json.loads((tmp_path / "other").read_text())["layers"]) == 2


def test_of_another_gpu_or_torch_is_measured_anew_and_said(tmp_path, caplog):
    engines = Engines(HERE, Clock(3.0, 2.0, 1.0))
    layer(engines)
    found(engines, tmp_path / NAME)
    for changed in ({"gpu": "another"}, {"torch": "3"}, {"cudnn": 10}):
        caplog.clear()
        clock = Clock(1.0)
        again = Engines(HERE | changed, clock)
        with caplog.at_level(logging.WARNING, "simfast"):
            again.keep_in(tmp_path / "new", tmp_path / NAME)
        assert str(tmp_path / NAME) in caplog.text
        layer(again)
        assert clock.calls == 9


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"layers": 3}', '{"layers": {"x": {"forward": {"way": "magic"}}}}', '{"layers": {"x": {"up": {"way": "cudnn"}}}}'],  # noqa: E501
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_mends_it(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"^engines: .*{NAME} must hold .*remove it.*--engines torch, got"):
        Engines(HERE).keep_in(tmp_path / NAME, tmp_path / NAME)


def test_a_way_that_a_layer_does_not_have_is_an_error(tmp_path):
    engines = Engines(HERE, Clock(1.0))
    layer(engines, padding=1)
    content = found(engines, tmp_path / NAME)
    next(iter(content["layers"].values()))["forward"]["way"] = "product"
    (tmp_path / NAME).write_text(json.dumps(content))
    again = Engines(HERE, Clock(1.0))
    again.keep_in(tmp_path / NAME, tmp_path / NAME)
    with pytest.raises(ValueError, match=r"^engines: engines.json must have cudnn or native for forward of .*product"):
        layer(again, padding=1)


def test_where_nothing_can_be_measured_it_is_refused(settings, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^engines: must be torch without a GPU, got 'measured'"):
        make_trainer(engines="measured")
    with pytest.raises(SystemExit, match="engines: must be torch without a GPU"):
        train([*settings, "--steps", "1", "--engines", "measured", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    gpu = torch.device("cuda")
    monkeypatch.setattr("simfast.training.engines.environment", lambda device: HERE)
    config = make_trainer().config.__class__(engines="measured")
    assert isinstance(networks.measured_engines(config, "graph", gpu), Engines)
    for mode in ("compile", "compile+graph"):
        with pytest.raises(ValueError, match=rf"^engines: must be torch with step_mode {mode.replace('+', '.')}, got"):
            networks.measured_engines(config, mode, gpu)
    monkeypatch.setattr("simfast.training.engines.distributed.size", lambda: 2)
    with pytest.raises(ValueError, match=r"^engines: must be torch with several processes, got"):
        networks.measured_engines(config, "eager", gpu)


def measuring(monkeypatch, *times):
    """Runs on the CPU measure by this clock from here on."""
    clock = Clock(*times)
    monkeypatch.setattr(networks, "measured_engines", lambda *_: Engines(HERE, clock))
    return clock


def test_a_resumed_run_has_the_choice_of_its_beginning(settings, tmp_path, monkeypatch):
    clock = measuring(monkeypatch, 3.0, 1.0, 2.0)
    train([*settings, "--steps", "2", "--out", str(tmp_path / "parts")])
    assert clock.calls > 0
    kept = (tmp_path / "parts" / NAME).read_text()
    ways = {found["way"] for layer in json.loads(kept)["layers"].values() for found in layer.values()}
    assert ways > {"native"}
    clock = measuring(monkeypatch, 1.0)
    train(["--resume", str(tmp_path / "parts"), "--steps", "4"])
    assert clock.calls == 0
    assert (tmp_path / "parts" / NAME).read_text() == kept

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(networks, "measured_engines", measured_engines)
        with pytest.raises(SystemExit, match="engines: must be torch without a GPU"):
            train(["--resume", str(tmp_path / "parts"), "--engines", "measured"])
        train(["--resume", str(tmp_path / "parts"), "--engines", "torch"])

    clock = measuring(monkeypatch, 3.0, 1.0, 2.0)
    train([*settings, "--steps", "4", "--out", str(tmp_path / "whole")])
    parts, whole = (checkpoint.load(tmp_path / name / "last.pt") for name in ("parts", "whole"))
    for part in RESUMED_ALIKE:
        assert_same(parts[part], whole[part], part)


def test_stage_2_has_the_choice_of_stage_1(settings, tmp_path, monkeypatch):
    measuring(monkeypatch, 3.0, 1.0, 2.0)
    train([*settings, "--steps", "1", "--stage", "all", "--out", str(tmp_path)])
    first, second = (json.loads((tmp_path / stage / NAME).read_text())["layers"] for stage in ("stage1", "stage2"))
    assert first
    assert {kind: second[kind] for kind in first} == first
    measuring(monkeypatch, 1.0)  # by which every choice would be another
    stage2 = ["--steps", "1", "--stage", "2", "--stage1", str(tmp_path / "stage1"), "--out", str(tmp_path / "alone")]
    train([*settings, *stage2])
    alone = json.loads((tmp_path / "alone" / NAME).read_text())["layers"]
    assert {kind: alone[kind] for kind in first} == first


@needs_gpu
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_on_a_gpu_a_kept_choice_gives_the_same_bits(mode, tmp_path):
    states = []
    with determinism(True):
        for _ in range(2):
            trainer = make_trainer("cuda", mode, "bf16", engines="measured")
            trainer.networks.engines.keep_in(tmp_path / NAME, tmp_path / NAME)
            states.append(run_steps(trainer, 3))
            trainer.networks.engines.save()
    assert_same_bits(*states)
    content = json.loads((tmp_path / NAME).read_text())
    assert content["gpu"] == torch.cuda.get_device_name()
    assert (
        min(time for layer in content["layers"].values() for way in layer.values() for time in way["ms"].values()) > 0
    )
