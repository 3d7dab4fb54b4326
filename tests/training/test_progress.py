"""What a run says of its pace."""

import logging
import time

import pytest
import torch

from simfast.config import Config
from simfast.training.progress import TrainingProgress


@pytest.mark.parametrize(("method", "images"), [("aa", "4"), ("source-only", "2")])
def test_evaluations_count_to_the_time_left_and_not_as_training(method, images, monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "simfast")
    config = Config(method=method, steps=35, eval_every=10, batch_size=2)
    with TrainingProgress(config, 0, torch.device("cpu")) as progress:
        now += 10
        progress.say(10, {"seg": 1.25})
        with progress.evaluating():
            now += 100
        now += 10
        progress.say(20, {"seg": 0.5})
    first, second = (record.message for record in caplog.records)
    assert first.startswith(f"step 10/35: seg 1.25; {images} images/s, 00:25 left, ")
    # 15 steps, and two evaluations: after steps 30 and 35.
    assert second.startswith(f"step 20/35: seg 0.5; {images} images/s, 03:35 left, ")
