"""What is not finite is never saved, and what cannot learn is told."""

import shutil
import signal

import pytest
import torch
from kept_runs import ALONE, fail_at, on, signal_at
from PIL import Image
from running import train

from simfast.models import checkpoint
from simfast.models.deeplab import RESNET_STAGES
from simfast.report.metrics import read_metrics
from simfast.runtime.console import StopSignals
from simfast.training.step import Trainer


@pytest.fixture
def data(folders, tmp_path):
    """The source and the target, to be changed."""
    return shutil.copytree(folders, tmp_path / "data")


def poison(monkeypatch, name, step):
    """A loss that is not finite from a step on."""
    before = Trainer.step

    def wrapped(self, number, *batch):
        losses = before(self, number, *batch)
        return losses | ({name: losses[name] / 0} if number + 1 >= step else {})

    monkeypatch.setattr(Trainer, "step", wrapped)


def test_losses_are_the_means_of_the_steps_since_the_last_line(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda _, number, *batch: {"seg": torch.tensor(number + 1.0)})
    given = ["--log-every", "2", "--eval-every", "50", "--steps", "5"]
    train([*settings, *ALONE, *given, "--out", str(tmp_path)])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["seg"]) for row in rows if row["kind"] == "train"] == [(2, 1.5), (4, 3.5), (5, 5.0)]


def test_losses_of_a_run_that_is_stopped_between_its_lines_are_those_of_a_straight_one(settings, tmp_path, monkeypatch):
    given = [*settings, "--log-every", "5", "--eval-every", "50", "--steps", "6"]
    train([*given, "--out", str(tmp_path / "straight")])
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train([*given, "--out", str(tmp_path / "run")])
    with monkeypatch.context() as patch:
        fail_at(patch, 2, OSError("stopped"))
        with pytest.raises(SystemExit, match=r"last\.pt is of step 3"):
            train(["--resume", str(tmp_path / "run")])
    train(["--resume", str(tmp_path / "run")])
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "straight")]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [5, 6, 6]


def test_the_loss_that_went_first_is_told_and_the_checkpoint_is_from_before(settings, tmp_path, monkeypatch):
    poison(monkeypatch, "stuff", 3)
    poison(monkeypatch, "adv", 4)
    rule = r"the losses are not finite at step 3: stuff first \(then adv at step 4\); .*, a lower --lambda-ci; "
    rule += r"\S*last\.pt is of step 2; continue"
    with pytest.raises(SystemExit, match=rule):
        train([*settings, "--log-every", "50", "--steps", "4", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (torch.inf, "the losses are not finite at step 1: seg, d first, so the network itself is not"),
        (3e38, "the losses are too large at step 2"),  # each is finite
    ],
)
def test_losses_that_go_together_are_not_blamed_on_one(loss, told, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *_: dict.fromkeys(("seg", "d"), torch.tensor(loss)))
    with pytest.raises(SystemExit, match=rf"{told}; a new run may try a lower --lr \(0\.001\)$"):
        train([*settings, "--log-every", "50", "--steps", "2", "--out", str(tmp_path)])


def test_an_error_after_a_divergence_saves_nothing(settings, tmp_path, monkeypatch):
    poison(monkeypatch, "seg", 3)
    fail_at(monkeypatch, 4, OSError("stopped"), Trainer, "step")
    rule = r"stopped; the state after step 3 is not sound and was not saved; \S*last\.pt is of step 2; continue"
    with pytest.raises(SystemExit, match=rule):
        train([*settings, *ALONE, "--log-every", "50", "--steps", "4", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_a_signal_after_a_divergence_saves_nothing(settings, tmp_path, monkeypatch):
    poison(monkeypatch, "seg", 3)
    with monkeypatch.context() as patch:
        # As a signal that arrives in step 3, before the losses are read.
        patch.setattr(StopSignals, "received", None, raising=False)
        before = Trainer.step

        def step(self, number, *batch):
            if number == 2:
                signal.raise_signal(signal.SIGTERM)
            return before(self, number, *batch)

        patch.setattr(Trainer, "step", step)
        with pytest.raises(SystemExit, match="not finite at step 3: seg first"):
            train([*settings, *ALONE, "--log-every", "50", "--steps", "9", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def in_a_bank(trainer):
    trainer.matching.bank.storage[0, 0] = torch.nan


def in_a_momentum(trainer):
    next(iter(trainer.optimizers.segmentation.state.values()))["momentum_buffer"].fill_(torch.nan)


@pytest.mark.parametrize(("damage", "told"), [(in_a_bank, "what is remembered"), (in_a_momentum, "the optimizer")])
def test_banks_and_momenta_that_are_not_finite_are_not_saved(damage, told, settings, tmp_path, monkeypatch):
    before = Trainer.step

    def step(self, number, *batch):
        losses = before(self, number, *batch)
        if number == 3:
            damage(self)
        return losses

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(SystemExit, match=rf"{told} is not finite after step 4.*is of step 2"):
        train([*settings, "--log-every", "50", "--steps", "4", "--out", str(tmp_path), "--lambda-ci", "0"])


def test_fp16_that_leaves_out_every_step_is_seen(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(RESNET_STAGES, "resnet18", (1, 1, 1, 1))  # fp16 takes its time on a CPU
    monkeypatch.setattr("torch.amp.GradScaler._unscale_grads_", lambda *_: {torch.device("cpu"): torch.ones(())})
    with pytest.raises(SystemExit, match=r"steps 1[0-9] to 1[0-9] were all left out.*--precision bf16"):
        train([*settings, *ALONE, "--precision", "fp16", "--source-size", "33", "33", "--log-every", "2",
               "--eval-every", "50", "--steps", "20", "--out", str(tmp_path)])  # fmt: skip
    assert "steps 1 to 2 were all left out, as their gradients are not finite in fp16" in capsys.readouterr().out


def test_pictures_of_one_value_in_the_labels_are_told(settings, data, tmp_path, monkeypatch, capsys):
    for file in (data / "source/train/labels").glob("*.png"):
        Image.new("L", (64, 64), 255).save(file)
    monkeypatch.setattr("simfast.training.opening.first_look", lambda *_: None)
    train([*on(settings, data), *ALONE, "--steps", "2", "--out", str(tmp_path / "run")])
    assert "seg is 0: in steps 1 to 1 no pixel of the labels is of a class" in capsys.readouterr().out


@pytest.mark.parametrize("loss", [500.0, 50.0])
def test_a_loss_far_beyond_a_guess_is_told(loss, settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "step", lambda *_: {"seg": torch.tensor(loss)})
    train([*settings, *ALONE, "--steps", "1", "--out", str(tmp_path)])
    told = f"seg is {loss:g}, where guessing gives 2.9: the network is not learning; a new run may try a lower --lr"
    assert (told in capsys.readouterr().out) == (loss == 500)
