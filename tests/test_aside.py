"""Work beside a step: what waits for what, and where a step asks for it and needs it."""

import contextlib

import pytest
import torch
from test_step_modes import batches, make_trainer

from simfast.aside import Aside
from simfast.testing import needs_gpu


class Stream:
    """Says of itself what it waits for."""

    def __init__(self, name, log):
        self.name, self.log, self.device = name, log, torch.device("cuda", 0)

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_the_side_waits_for_the_current_stream_and_is_waited_for(monkeypatch):
    log = []
    side, current = Stream("side", log), Stream("current", log)

    @contextlib.contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    aside = Aside(torch.device("cuda"))
    assert aside.run(lambda x: log.append("run") or x + 1, 2) == 3
    aside.join()
    assert log == ["side waits for current", "on side", "run", "current waits for side"]


def test_on_a_cpu_it_is_a_call():
    aside = Aside(torch.device("cpu"))
    assert aside.run(max, 2, 3) == 3
    aside.join()


def test_a_step_asks_for_regions_before_the_work_that_hides_them_and_joins_before_it_needs_them(monkeypatch):
    trainer, log = make_trainer(), []

    def note(owner, name):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: log.append(name) or method(*args, **kwargs))

    note(trainer._aside, "run")
    note(trainer._aside, "join")
    note(trainer, "_backward")
    note(trainer, "_judge")
    note(trainer.matching, "remember")
    note(trainer.matching, "forward")
    trainer.step(0, *next(batches(1)))
    source, target = ["run", "_backward", "join", "remember"], ["run", "_judge", "join", "forward", "_backward"]
    assert log[: len(source) + len(target)] == source + target


@needs_gpu
def test_results_of_the_side_are_those_of_the_current_stream_while_memory_is_reused():
    aside = Aside(torch.device("cuda"))
    for i in range(20):
        x = torch.full((1 << 20,), i, device="cuda")
        y = aside.run(lambda x: (x + 1) * 2, x)
        torch.cuda._sleep(1_000_000)
        aside.join()
        assert int(y.min()) == int(y.max()) == 2 * (i + 1)
        del x, y


@pytest.mark.parametrize("method", ["aa", "source-only"])
def test_a_step_without_matching_runs_nothing_aside(method, monkeypatch):
    trainer = make_trainer(method=method)
    monkeypatch.setattr(trainer._aside, "run", None)
    trainer.step(0, *next(batches(1)))
