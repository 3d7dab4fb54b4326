"""A further part of the target, scored once at the end: what keeps it from being scored shows before the training."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from running import train

from simfast.cli import call
from simfast.config.classes import CITYSCAPES

STREET = ("road", "building", "sky", "person", "car")


@pytest.fixture
def val(folders, tmp_path):
    """The labelled part of a copy of the target."""
    shutil.copytree(folders / "target", tmp_path / "target")
    return tmp_path / "target" / "val"


@pytest.fixture
def reported(settings, val, tmp_path):
    """Command line of a run of seconds that scores this part at its end alone."""
    own = ["--target-root", str(val.parent), "--method", "source-only", "--steps", "1", "--out", str(tmp_path / "run")]
    return [*settings, *own, "--eval-split", "none", "--report-split", "val"]


def test_a_score_set_that_the_labels_cannot_have_is_told_before_the_work(reported, tmp_path, monkeypatch):
    few = {CITYSCAPES.names.index(name): name for name in STREET} | {255: "ignore"}
    (tmp_path / "ids.yaml").write_text(yaml.safe_dump(few))
    reported += ["--target-ids", str(tmp_path / "ids.yaml")]
    rule = r"score_classes: must be a set whose every class the {} labels can have, got 13, and they lack sidewalk, .*"
    remedy = "; give --score-classes auto, or another --report-split, or None"
    with pytest.raises(SystemExit, match=rule.format("report") + remedy):
        train([*reported, "--score-classes", "13"])
    assert not (tmp_path / "run").exists()
    assert train([*reported, "--score-classes", "auto"])["report"]["last"]["classes"] == len(STREET)

    monkeypatch.setattr("simfast.inference.evaluate.full_size_labels", lambda *_: pytest.fail("an image was scored"))
    command = ["evaluate", str(tmp_path / "run"), "--workers", "0", "--eval-split", "val", "--score-classes", "13"]
    with pytest.raises(SystemExit, match=rule.format("held-out") + "; give --score-classes auto, or another --eval-s"):
        call(command)


def test_a_part_that_cannot_be_scored_is_told_before_the_training(reported, val, tmp_path):
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(val / "labels" / "1.png")
    with pytest.raises(SystemExit, match=r"val/labels/1\.png: .*got 77 .*; give --report-split None where its 'val'"):
        train(reported)
    assert not (tmp_path / "run").exists()


def test_a_part_that_became_bad_since_leaves_a_run_that_is_trained_a_way_to_its_end(reported, val, tmp_path):
    run = tmp_path / "run"
    train(reported)
    (run / "result.json").unlink()
    (val / "labels" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(SystemExit) as error:
        train(["--resume", str(run)])
    file, remedy, kept, way = str(error.value).split("; ")
    assert f"{val}/labels/1.png: must be a readable" in file
    assert remedy == "give --report-split None where its 'val' is not to be scored"
    assert (kept, way) == (f"{run}/last.pt is of step 1", f"continue with --resume {run}")
    assert "report" not in train(["--resume", str(run), "--report-split", "None"])
    assert (run / "result.json").is_file()
