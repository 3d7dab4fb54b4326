"""The parts of the data that settings name."""

import dataclasses
from pathlib import Path

import pytest

from simfast.config.presets import PRESETS
from simfast.data.parts import arguments_of


def test_a_source_that_is_named_twice_is_refused():
    one, other = Path("one"), Path("other")
    base = dataclasses.replace(PRESETS["streets"], source=("folder", "folder"), source_split=("train",))
    for apart in (
        {"source_root": (one, other)},
        {"source_root": (one,), "source_split": ("train", "val")},
        {"source_root": (one,), "source_images": (None, other)},
    ):
        assert {"source", "source 2"} < arguments_of(dataclasses.replace(base, **apart)).keys()
    twice = dataclasses.replace(base, source_root=(one,), source_share=(2, 1))  # one of the two roots was forgotten
    with pytest.raises(ValueError, match=r"source: must be data sets that differ .*, got folder in one twice; "):
        arguments_of(twice)
