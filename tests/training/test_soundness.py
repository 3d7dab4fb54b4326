"""What is not finite is never saved, and what cannot learn is told."""

import re
import shutil
import signal

import pytest
import torch
from kept_runs import ALONE, on
from PIL import Image
from running import train

from simfast.models import checkpoint
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


def test_the_loss_that_went_first_is_told_and_the_checkpoint_is_from_before(settings, tmp_path, monkeypatch):
    poison(monkeypatch, "stuff", 3)
    rule = "the losses are not finite at step 3: stuff first; .*--lambda-ci; .*last.pt is of step 2; continue"
    with pytest.raises(SystemExit, match=rule):
        train([*settings, "--log-every", "50", "--steps", "4", "--out", str(tmp_path)])
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


def test_banks_that_are_not_finite_are_not_saved(settings, tmp_path, monkeypatch):
    before = Trainer.step

    def step(self, number, *batch):
        losses = before(self, number, *batch)
        if number == 3:
            self.matching.bank.storage[0, 0] = torch.nan
        return losses

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(SystemExit, match=r"what is remembered is not finite after step 4.*is of step 2"):
        train([*settings, "--log-every", "50", "--steps", "4", "--out", str(tmp_path), "--lambda-ci", "0"])


def test_fp16_that_leaves_out_every_step_is_seen(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.amp.GradScaler._unscale_grads_", lambda *_: {torch.device("cpu"): torch.ones(())})
    with pytest.raises(SystemExit, match=r"steps 1[0-9] to 1[0-9] were all left out.*--precision bf16"):
        train([*settings, *ALONE, "--precision", "fp16", "--log-every", "2", "--eval-every", "50", "--steps", "20",
               "--out", str(tmp_path)])  # fmt: skip
    assert "steps 1 to 2 were all left out, as their gradients are not finite in fp16" in capsys.readouterr().out


def test_pictures_of_one_value_in_the_labels_are_told(settings, data, tmp_path, monkeypatch, capsys):
    for file in (data / "source/train/labels").glob("*.png"):
        Image.new("L", (64, 64), 255).save(file)
    monkeypatch.setattr("simfast.training.opening.first_look", lambda *_: None)
    train([*on(settings, data), *ALONE, "--steps", "2", "--out", str(tmp_path / "run")])
    assert "seg is 0: in steps 1 to 1 no pixel of the labels is of a class" in capsys.readouterr().out


def test_a_loss_far_beyond_a_guess_is_told(settings, data, tmp_path, monkeypatch, capsys):
    before = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *given: {"seg": 500 + before(self, *given)["seg"]})
    train([*on(settings, data), *ALONE, "--steps", "1", "--out", str(tmp_path / "run")])
    told = r"seg is 50\d, where guessing gives 2.9: the network is not learning; a new run may try a lower --lr"
    assert re.search(told, capsys.readouterr().out)
