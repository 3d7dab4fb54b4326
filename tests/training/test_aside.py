"""Work beside a step: what waits for what, and where a step asks for it and needs it."""

import contextlib
import gc
import weakref

import pytest
import torch
from test_step_modes import batches, make_trainer

from simfast.testing import needs_gpu
from simfast.training.aside import Aside


class Stream:
    """Says of itself what it waits for."""

    def __init__(self, name, log):
        self.name, self.log, self.device = name, log, torch.device("cuda", 0)

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def streams(monkeypatch):
    """What the streams of an Aside on a GPU wait for, and when each is the current one."""
    log = []
    side, current = Stream("side", log), Stream("current", log)

    @contextlib.contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def test_the_side_waits_for_the_current_stream_and_is_waited_for(streams):
    aside = Aside(torch.device("cuda"))
    assert aside.run(lambda x: streams.append("run") or x + 1, 2) == 3
    aside.join()
    assert streams == ["side waits for current", "on side", "run", "current waits for side"]


def test_nothing_is_waited_for_that_was_not_run_or_has_been_joined(streams):
    """A capture ends at a wait for a stream that is not in it."""
    aside = Aside(torch.device("cuda"))
    aside.join()
    assert streams == []
    aside.run(max, 1, 2)
    aside.join()
    aside.join()
    assert streams.count("current waits for side") == 1


def test_what_is_read_beside_is_held_until_the_join(streams):
    """Else an error in between lets the current stream's next tensor overwrite it."""
    aside, x = Aside(torch.device("cuda")), torch.zeros(3)
    held = weakref.ref(x)
    aside.run(torch.neg, x)
    del x
    gc.collect()
    assert held() is not None
    aside.join()
    assert held() is None


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
    note(trainer.optimizers, "backward")
    note(trainer.networks, "judge")
    note(trainer.matching, "remember")
    note(trainer.matching, "forward")
    trainer.step(0, *next(batches(1)))
    source, target = ["run", "backward", "join", "remember"], ["run", "judge", "join", "forward", "backward"]
    assert log[: len(source) + len(target)] == source + target


def test_an_error_between_leaves_nothing_that_is_not_joined(monkeypatch):
    """A capture with such a part cannot end, and torch's allocator then stays half in it."""
    trainer, log = make_trainer(), []
    join = trainer._aside.join
    monkeypatch.setattr(trainer._aside, "join", lambda: log.append("join") or join())

    def fail(loss):
        raise MemoryError("beside")

    monkeypatch.setattr(trainer.optimizers, "backward", fail)
    with pytest.raises(MemoryError, match="beside"):
        trainer.step(0, *next(batches(1)))
    assert log == ["join"]


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
