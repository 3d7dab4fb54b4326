"""The parts of the data that settings name."""

import dataclasses
from pathlib import Path

import pytest

from simfast.config.presets import PRESETS
from simfast.data.parts import arguments_of, held_out_name


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


def test_the_held_out_parts_name_says_what_map_its_labels_are_read_by():
    base = PRESETS["camvid"]
    assert held_out_name(base) == "camvid val"
    mapped = dataclasses.replace(base, target_ids=Path("ids.yaml"))
    assert held_out_name(mapped) == "camvid val, labels read by ids.yaml"


def test_roots_that_are_too_many_are_shown_as_they_were_given():
    with pytest.raises(ValueError, match=r"source_root: .* for each source \(1\), got \['one', 'other'\]"):
        dataclasses.replace(PRESETS["camvid"], source_root=(Path("one"), Path("other")))
