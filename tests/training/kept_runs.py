"""Runs that go wrong or move, and what is to be the same of two."""

import contextlib
import signal

import torch

from simfast.models import checkpoint
from simfast.training.step import Trainer

ALONE = ("--method", "source-only")


RESUMED_ALIKE = ("model", "optimizer", "matching", "discriminator", "step", "last", "best", "random")


def at(settings, source, target):
    """The settings with other roots."""
    given = list(settings)
    for option, root in (("--source-root", source), ("--target-root", target)):
        given[given.index(option) + 1] = str(root)
    return given


def on(settings, data):
    return at(settings, data / "source", data / "target")


def places(data):
    return ["--source-root", str(data / "source"), "--target-root", str(data / "target")]


def equal(first, second):
    """Bit for bit, all the way down."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def assert_same(first, second, where=""):
    """Equal bit for bit, all the way down."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def state(path):
    found = checkpoint.load(path)
    return {key: found[key] for key in RESUMED_ALIKE if key in found}


@contextlib.contextmanager
def broken(path):
    """A file that cannot be read."""
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    yield
    path.write_bytes(whole)


def fail_at(monkeypatch, step, error, owner=Trainer, name="_discriminator_loss"):
    """An error at a call, counted from 1."""

    def fail():
        raise error

    _at(monkeypatch, step, fail, owner, name)


def signal_at(monkeypatch, step, number, owner=Trainer, name="step"):
    """A signal at a call, counted from 1."""
    _at(monkeypatch, step, lambda: signal.raise_signal(number), owner, name)


def _at(monkeypatch, step, act, owner, name):
    before, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == step:
            act()
        return before(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)
