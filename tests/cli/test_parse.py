"""Where a command's settings start from, and what the command line leaves of that."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from simfast.cli.commands import COMMANDS
from simfast.cli.parse import parse
from simfast.config.classes import classes_of
from simfast.config.presets import PRESETS
from simfast.models import checkpoint

APART = ("few/images", "few/labels")


@pytest.fixture
def stored(tmp_path):
    """A run's checkpoint whose photographs are scored on a set apart, and its settings as a file."""
    config = dataclasses.replace(
        PRESETS["streets"],
        target="folder",
        target_root=Path("mine"),
        eval_split="none",
        eval_images=Path(APART[0]),
        eval_labels=APART[1],
    )
    checkpoint.save(tmp_path / "best.pt", {"config": config.to_dict(), "model": {"layer.weight": torch.zeros(2)}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.portable()))
    return tmp_path


def test_what_a_preset_says_of_its_data_says_nothing_of_others(stored, tmp_path):
    def settings_of(*arguments):
        config = parse(["check-data", *map(str, arguments)], COMMANDS).config
        return config.source_split, config.eval_split, config.report_split

    streets = ["--preset", "streets"]
    assert settings_of(*streets) == (("source",), "test", None)
    assert settings_of(*streets, "--source", "folder") == (("train",), "test", None)
    assert settings_of(*streets, "--source", "folder", "--source", "streets") == (("train",), "test", None)
    assert settings_of(*streets, "--source", "streets", "--target", "folder") == (("source",), "val", None)
    assert settings_of(*streets, "--target", "folder", "--eval-split", "none") == (("source",), "none", None)
    assert settings_of("--preset", "camvid", "--target", "folder") == (("train",), "val", None)
    assert settings_of("--preset", "camvid", "--source", "streets") == (("train",), "val", "test")
    (tmp_path / "my.yaml").write_text("preset: streets\nsource: folder\ntarget: folder\neval_split: held\n")
    assert settings_of("--config", tmp_path / "my.yaml") == (("train",), "held", None)
    assert settings_of("--config", tmp_path / "my.yaml", "--target", "camvid") == (("train",), "val", None)
    for target, expected in (("folder", ("none", Path("mine"))), ("camvid", ("val", None))):
        config = parse(["evaluate", str(stored), "--target", target], COMMANDS).config
        assert (config.eval_split, config.target_root) == expected


def test_a_set_apart_is_that_of_its_target_and_gives_way_to_a_part_that_is_named(stored):
    def scored(command, *arguments):
        config = parse([command, *map(str, arguments)], COMMANDS).config
        return (config.eval_images and str(config.eval_images), config.eval_labels), config.eval_split

    run, file = ("evaluate", stored), ("check-data", "--config", stored / "config.yaml")
    stage2 = ("train", "--stage", "2", "--stage1", stored)
    for start in (run, file, stage2):
        assert scored(*start) == (APART, "none")
        assert scored(*start, "--eval-split", "none") == (APART, "none")
        assert scored(*start, "--eval-split", "val") == ((None, None), "val")
        own = ("--eval-split", "val", "--eval-images", "x", "--eval-labels", "y")
        assert scored(*start, *own) == (("x", "y"), "val")
    for start in (run, file, stage2):
        assert scored(*start, "--target", "folder", "--target-root", "moved") == (APART, "none")
        assert scored(*start, "--target", "camvid") == ((None, None), "val")


def test_what_a_file_says_of_its_data_says_nothing_of_others(tmp_path):
    def settings_of(*arguments):
        return parse(["train", "--config", str(tmp_path / "my.yaml"), *arguments], COMMANDS).config

    own = {"source": "folder", "source_root": "s", "source_ids": "s.yaml", "source_split": "sunny", "lr": 0.5}
    own |= {"target": "folder", "target_root": "t", "target_ids": "t.yaml", "target_labels": "l", "target_split": "day"}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(own))
    same = settings_of("--source", "folder", "--target", "folder")
    assert (same.target_root, same.source_root) == (Path("t"), (Path("s"),))
    of_target = [f"target_{name}" for name in ("root", "ids", "labels", "split")]
    found = settings_of("--target", "cityscapes")
    assert [getattr(found, name) for name in of_target] == [None, None, None, "train"]
    assert (found.target, found.source_root, found.source_split, found.lr) == (
        "cityscapes",
        (Path("s"),),
        ("sunny",),
        0.5,
    )
    found = settings_of("--source", "gta5", "--source-root", "g")
    assert (found.source, found.source_root, found.source_ids) == (("gta5",), (Path("g"),), (None,))
    assert (found.source_split, found.target_root) == (("train",), Path("t"))
    (tmp_path / "my.yaml").write_text("preset: gta5\ntarget_root: t\n")  # of whatever target is meant
    assert settings_of("--target", "folder").target_root == Path("t")


def test_an_id_map_of_a_runs_labels_is_not_that_of_images_named_now(stored):
    config = dataclasses.replace(PRESETS["streets"], target="folder", target_root=Path("t"), target_ids=Path("t.yaml"))
    weights = {"layer.weight": torch.zeros(2)}
    checkpoint.save(stored / "best.pt", {"config": config.to_dict(), "model": weights})

    def ids(*arguments):
        return parse(["evaluate", str(stored), *arguments], COMMANDS).config.target_ids

    assert ids() == ids("--target-root", "moved") == Path("t.yaml")
    assert ids("--eval-images", "x", "--eval-labels", "y") is None
    assert ids("--eval-images", "x", "--eval-labels", "y", "--target-ids", "z") == Path("z")
    apart = dataclasses.replace(config, eval_images=Path("x"), eval_labels="y")
    checkpoint.save(stored / "best.pt", {"config": apart.to_dict(), "model": weights})
    assert ids("--eval-images", "x") == Path("t.yaml")


@pytest.mark.parametrize("content", ["", "\0" * 50])
def test_both_stages_go_on_where_a_power_loss_left_no_settings(content, tmp_path):
    begun = dataclasses.replace(PRESETS["streets"], stage="all", lr=0.5, out=tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(content)
    (tmp_path / "stage1").mkdir()
    rule = r"config\.yaml: must hold the run's settings, got an empty file; remove .*, and begin it again"
    with pytest.raises(ValueError, match=rule):
        parse(["train", "--resume", str(tmp_path)], COMMANDS)
    for stage, first in ((1, None), (2, tmp_path / "stage1")):
        one = dataclasses.replace(begun, stage=stage, stage1=first, out=tmp_path / f"stage{stage}")
        (tmp_path / f"stage{stage}").mkdir(exist_ok=True)
        checkpoint.save(tmp_path / f"stage{stage}" / "last.pt", {"config": one.to_dict()})
        found = parse(["train", "--resume", str(tmp_path)], COMMANDS).config
        assert found == dataclasses.replace(begun, resume=tmp_path)


def test_a_presets_score_set_is_that_of_its_class_list(tmp_path):
    def score_classes(*arguments):
        return parse(["train", *map(str, arguments)], COMMANDS).config.score_classes

    three = [{"name": name, "colour": [i, 0, 0], "kind": "stuff"} for i, name in enumerate("abc")]
    mine, copy, settings = (tmp_path / name for name in ("mine.yaml", "copy.yaml", "settings.yaml"))
    mine.write_text(yaml.safe_dump({"classes": three, "score_sets": {"two": ["a", "b"]}}))
    copy.write_text(classes_of("cityscapes").text())
    settings.write_text(f"preset: synthia\nclasses: {mine}\n")
    synthia = ("--preset", "synthia", "--classes")
    assert score_classes(*synthia, mine) == "auto"
    assert score_classes(*synthia, mine, "--score-classes", "two") == "two"
    assert score_classes(*synthia, copy) == "13"
    assert score_classes("--config", settings) == "auto"
    with pytest.raises(ValueError, match="score_classes: must be one of auto, two with the classes mine, got '13'"):
        score_classes(*synthia, mine, "--score-classes", "13")
