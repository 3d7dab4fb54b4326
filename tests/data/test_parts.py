"""The parts of the data that settings name."""

import dataclasses
from pathlib import Path

import pytest
from trees import label_maps, pictures

from simfast.config.presets import PRESETS
from simfast.data import open_dataset
from simfast.data.parts import arguments_of, held_out_name, open_source, require_own_parts
from simfast.data.prepare import prepare


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


@pytest.fixture
def two_renders(tmp_path):
    """Settings with two sources, whose folders have one name, and a cache."""
    for who in "ab":
        pictures(tmp_path, f"{who}/renders/images/0.png")
        label_maps(tmp_path, f"{who}/renders/labels/0.png")
    roots = (tmp_path / "a/renders", tmp_path / "b/renders")
    base = dataclasses.replace(PRESETS["streets"], source=("folder", "folder"), source_root=roots)
    return dataclasses.replace(base, source_split=("train",), cache=tmp_path / "cache")


def test_two_folders_that_a_cache_would_take_for_one_are_refused_with_a_way_out_that_works(two_renders, tmp_path):
    a, b = two_renders.source_root
    message = rf"cache: .*, got folder-renders-train-160x120-\w+ of {a} \(source\) and {b} \(source 2\).*--cache None"
    for refused in (lambda: open_source(two_renders), lambda: require_own_parts(two_renders)):
        with pytest.raises(ValueError, match=message):
            refused()
    open_source(dataclasses.replace(two_renders, cache=None))
    (tmp_path / "renders-b").symlink_to(b)  # one of the ways that the message names
    linked = dataclasses.replace(two_renders, source_root=(a, tmp_path / "renders-b"))
    for part, arguments in arguments_of(linked).items():
        if part.startswith("source"):
            prepare(open_dataset(**arguments), linked.cache, 0)
    assert len(open_source(linked)) == 2


@pytest.mark.parametrize(
    "apart",
    [
        {"source": ("gta5", "gta5")},
        {"source_root": (Path("one"),), "source_images": (Path("a/images"), Path("b/images"))},
        {"source_root": (Path("one"),), "source_split": ("/a/list.txt", "/b/list.txt")},
        {"source_root": (Path("one"),), "source_labels": ("/a/masks", "/b/masks")},
    ],
    ids=["published", "images", "lists", "labels"],
)
def test_whatever_tells_two_parts_apart_by_its_place_alone_is_refused_with_a_cache(apart, two_renders):
    with pytest.raises(ValueError, match="cache: must have a part for each"):
        require_own_parts(dataclasses.replace(two_renders, **apart))


def test_parts_of_the_same_files_may_be_one(two_renders):
    root = two_renders.source_root[0]
    same = {"target": "folder", "target_root": root, "eval_split": "train", "report_split": "train"}
    require_own_parts(dataclasses.replace(two_renders, source=("folder",), source_root=(root,), **same))
