"""Classes of one's own, painted labels, photographs without any: both stages and a prediction on another machine."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import train

from simfast.cli import call
from simfast.config.classes import classes_of
from simfast.models import checkpoint
from simfast.report.metrics import read_metrics

ROOT = Path(__file__).parents[1]
NAMES = ("ground", "building", "nature", "vehicle", "person")
VEHICLE, PERSON = 3, 4


@pytest.fixture(scope="module")
def example():
    """The module examples/five_classes.py."""
    spec = importlib.util.spec_from_file_location("five_classes", ROOT / "examples" / "five_classes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """The folders of the data and of a run of both stages on them, and what it left."""
    home = tmp_path_factory.mktemp("home")
    example.write(home / "yard", most=12)
    data = [
        *("--preset", "streets", "--classes", str(home / "yard/classes.yaml")),
        *("--source", "folder", "--source-root", str(home / "yard/renders")),
        *("--target", "folder", "--target-root", str(home / "yard/photos"), "--eval-split", "none"),
        *("--source-size", "64", "48", "--target-size", "64", "48"),
    ]
    assert call(["check-data", *data]) == 0
    schedule = [
        "--steps",
        "20",
        "--schedule-steps",
        "40",
        "--batch-size",
        "1",
        "--eval-every",
        "20",
        "--log-every",
        "5",
        "--panel-images",
        "1",
    ]
    result = train([*data, "--device", "cpu", "--stage", "all", *schedule, "--out", str(home / "run")])
    torch.use_deterministic_algorithms(False)
    return home, result


def test_both_stages_train_on_painted_labels_and_bare_photographs(run):
    home, result = run
    for stage in ("stage1", "stage2"):
        assert result[stage]["last"]["miou"] is None
        assert result[stage]["best"] == result[stage]["last"]
        assert (home / "run" / stage / "panel-000020.png").is_file()
    thresholds = json.loads((home / "run/stage2/pseudo-labels/thresholds.json").read_text())
    assert (tuple(thresholds["classes"]), thresholds["images"]) == (NAMES, 12)


def test_instance_matching_acts_on_the_things_of_the_list(run):
    home, _ = run
    rows = [row for row in read_metrics(home / "run/stage1/metrics.jsonl") if row["kind"] == "train"]
    assert rows[-1]["instance"] > 0
    assert rows[-1]["stuff"] > 0
    state = checkpoint.load(home / "run/stage1/last.pt")["matching"]
    written = dict(zip(("ground", "building", "nature", "vehicle", "person"), state["bank.written"], strict=True))
    assert written["vehicle"] > 0, written
    assert state["bank.storage"].isfinite().all()


def test_another_machine_needs_the_run_folder_alone(run, example, tmp_path, capsys):
    home, _ = run
    shutil.copytree(home / "run", tmp_path / "elsewhere")
    shutil.copytree(home / "yard/photos", tmp_path / "pictures")
    shutil.move(home / "yard", home / "gone")  # the class file with it
    try:
        assert (
            call(["predict", str(tmp_path / "elsewhere"), str(tmp_path / "pictures"), "--out", str(tmp_path / "out")])
            == 0
        )
        capsys.readouterr()
        assert call(["classes", str(tmp_path / "elsewhere")]) == 0
        printed = classes_of(yaml.safe_load(capsys.readouterr().out))
    finally:
        shutil.move(home / "gone", home / "yard")
    classes = classes_of(home / "yard/classes.yaml")
    assert printed == classes
    assert yaml.safe_load((tmp_path / "out/classes.yaml").read_text()) is not None
    colours = {entry.colour for entry in classes.entries}
    for name in ("4000", "4011"):
        label = np.asarray(Image.open(tmp_path / f"out/labels/{name}.png"))
        assert label.shape == (240, 320)
        assert set(np.unique(label)) <= set(range(5))
        painted = np.asarray(Image.open(tmp_path / f"out/colour/{name}.png").convert("RGB"))
        assert {tuple(colour) for colour in painted.reshape(-1, 3).tolist()} <= colours
        assert np.array_equal(painted, np.array([entry.colour for entry in classes.entries], np.uint8)[label])


def test_a_few_labelled_pictures_apart_score_the_run(run, tmp_path, capsys):
    home, _ = run
    renders = home / "yard/renders"
    arguments = ["--eval-images", str(renders / "images"), "--eval-labels", str(renders / "labels")]
    assert call(["evaluate", str(home / "run"), *arguments, "--report", str(tmp_path / "scores.json")]) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["images"] == 12
    assert set(report["means"]["miou"]) <= set(NAMES)
    assert report["scores"]["miou"] > 0.1
    assert "vehicle" in capsys.readouterr().out
