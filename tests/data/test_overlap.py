"""Images that are scored on and trained on, too."""

import dataclasses

import pytest
from trees import label_maps, make_cityscapes, pictures

from simfast.config.presets import PRESETS
from simfast.data import open_dataset
from simfast.data.overlap import files_of, overlaps
from simfast.data.parts import arguments_of
from simfast.data.prepare import prepare


@pytest.fixture
def heap(tmp_path):
    """Settings with a heap of photographs as the target."""
    root = tmp_path / "photos"
    pictures(root, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    label_maps(root, *(f"{name}_L.png" for name in "abcd"))
    (root / "held.txt").write_text("c.jpg\nd.jpg\n")
    given = {"target": "folder", "target_root": root, "target_labels": "{dir}/{stem}_L.png"}
    return dataclasses.replace(PRESETS["streets"], **given, eval_split="held.txt")


def told(config):
    """The sentences, under their parts."""
    opened = {part: open_dataset(**arguments, cache=config.cache) for part, arguments in arguments_of(config).items()}
    return overlaps(config, {part: files_of(dataset) for part, dataset in opened.items()})


def test_a_held_out_list_of_a_heap_that_is_trained_on_is_told_with_what_keeps_them_apart(heap):
    root = heap.target_root
    (text,) = told(heap)["held-out"]
    assert text.startswith(f"{root}: images to score on are to be others than those to train on, got 2 of 2 in the ")
    assert f"target, too, such as {root}/c.jpg; --target-split and --eval-split name what is apart" in text
    (root / "train.txt").write_text("a.jpg\nb.jpg\n")
    assert told(dataclasses.replace(heap, target_split="train.txt")) == {}
    source = {"source": ("folder",), "source_root": (root,), "source_labels": (heap.target_labels,)}
    kept_apart = {"target_split": "train.txt", "source_split": ("held.txt",)}
    (text,) = told(dataclasses.replace(heap, **source, **kept_apart))["held-out"]
    assert "in the source, too" in text
    assert "--source-split" in text


def test_a_folder_inside_the_heap_and_links_are_the_same_images(heap):
    root = heap.target_root
    inside = dataclasses.replace(heap, eval_split="minival", report_split="links")
    pictures(root, "minival/x.jpg")
    label_maps(root, "minival/x_L.png", "links/a_L.png")
    (root / "links/a.jpg").symlink_to("../a.jpg")
    assert told(dataclasses.replace(inside, target_split="held.txt")) == {}
    found = told(inside)
    assert [len(found[part]) for part in ("held-out", "report")] == [1, 1]
    assert f"{root}/minival: images to score on" in found["held-out"][0]
    assert "--report-split" in found["report"][0]


def test_a_target_that_training_does_not_read_overlaps_nothing(heap):
    assert told(dataclasses.replace(heap, method="source-only")) == {}
    assert told(dataclasses.replace(heap, method="source-only", transfer="lab")) != {}
    assert told(dataclasses.replace(heap, method="target-only")) != {}


def test_a_cache_tells_it_where_the_files_are_at_hand(heap, tmp_path):
    cached = dataclasses.replace(heap, cache=tmp_path / "cache")
    for arguments in arguments_of(cached).values():
        prepare(open_dataset(**arguments), cached.cache, 0)
    assert told(cached) == told(heap)
    unlabelled = arguments_of(cached)["target"] | {"labelled": True, "labels": tmp_path / "pseudo"}
    label_maps(tmp_path, *(f"pseudo/{name}.png" for name in "abcd"))
    assert len(files_of(open_dataset(**unlabelled, cache=cached.cache))) == 4


def test_parts_of_embedded_and_published_sets_are_apart(tmp_path):
    streets = PRESETS["streets"]
    cityscapes = {"target": "cityscapes", "target_root": make_cityscapes(tmp_path), "eval_split": "val"}
    for config in (streets, dataclasses.replace(streets, **cityscapes)):
        assert told(config) == {}
        assert told(dataclasses.replace(config, eval_split="train")) != {}
