"""The command `simfast`, from its command line: each command on a run of seconds."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from simfast.cli import commands
from simfast.cli.commands import COMMANDS, train
from simfast.models import checkpoint, deeplab_v2


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """The folder of a finished run, and its result."""
    out = tmp_path_factory.mktemp("run")
    return out, train([*settings, "--out", str(out), "--steps", "2"])


def simfast(*arguments):
    """The exit code of `simfast ARGUMENTS`, or its message."""
    with pytest.raises(SystemExit) as exit_:
        commands.main([str(argument) for argument in arguments])
    return exit_.value.code


def test_help_names_every_command(capsys):
    assert simfast("--help") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    assert simfast("trian") == "simfast: unknown command 'trian'"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_the_trainers_settings(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert simfast(name, "--help") == 0
    explained = capsys.readouterr().out
    assert COMMANDS[name].__doc__.split(".")[0].split("\n")[0][:60] in explained
    assert "--target-root" in explained


def test_evaluate_scores_a_run_as_it_scored_itself(run, tmp_path, capsys):
    out, result = run
    path = tmp_path / "new" / "scores.json"
    assert simfast("evaluate", out, "--report", path) == 0
    report = json.loads(path.read_text())
    best = result["best"]
    assert {key: report["scores"][key] for key in best if key.startswith("iou/")} == {
        key: value for key, value in best.items() if key.startswith("iou/")
    }
    assert report["scores"]["miou/13"] == best["miou/13"]
    assert (report["images"], report["tensors"]["matched"]) == (2, report["tensors"]["total"])
    assert "mIoU" in capsys.readouterr().out


def test_evaluate_takes_a_released_file(folders, tmp_path, capsys):
    torch.manual_seed(0)
    model = deeplab_v2("resnet101", head_dilations=(6, 12, 18, 24))
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "sim.pth")
    arguments = ["--target", "folder", "--target-root", folders / "target", "--target-size", "64", "64"]
    assert simfast("evaluate", tmp_path / "sim.pth", *arguments, "--workers", 0, "--device", "cpu") == 0
    assert "bgr" in capsys.readouterr().out


def test_a_released_file_keeps_its_two_live_branches_whatever_the_preset(folders, tmp_path, capsys):
    model = deeplab_v2("vgg16", head_dilations=(6, 12, 18, 24))
    torch.save(model.state_dict(), tmp_path / "sim.pth")
    arguments = ["--preset", "gta5", "--target", "folder", "--target-root", folders / "target", "--workers", 0]
    assert simfast("evaluate", tmp_path / "sim.pth", *arguments, "--target-size", "64", "64") == 0
    assert "4 of 4 of the head" in capsys.readouterr().out


def test_predict_writes_labels_colours_and_overlays_of_any_size(run, tmp_path):
    out, _ = run
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(50, 90), (130, 40)]):
        Image.new("RGB", size, (90, 80, 70)).save(tmp_path / "in" / f"{i}.jpg")
    assert simfast("predict", out, tmp_path / "in", "--out", tmp_path / "out") == 0
    for kind in ("labels", "colour", "overlay"):
        sizes = [Image.open(tmp_path / "out" / kind / f"{i}.png").size for i in range(2)]
        assert sizes == [(50, 90), (130, 40)]
    (tmp_path / "in" / "bad.jpg").write_bytes(b"not a picture")
    assert simfast("predict", out / "last.pt", tmp_path / "in", "--out", tmp_path / "out") == 1


def test_pseudo_labels_from_any_checkpoint(run, tmp_path):
    out, _ = run
    assert simfast("pseudo-labels", out / "last.pt", "--out", tmp_path / "labels") == 0
    assert len(list((tmp_path / "labels").glob("*.png"))) == 4
    classes = json.loads((tmp_path / "labels" / "thresholds.json").read_text())["classes"]
    assert all(entry["threshold"] is None or entry["threshold"] <= 0.9 for entry in classes.values())
    assert (
        simfast("pseudo-labels", out)
        == "simfast pseudo-labels: out: must name the folder of the pseudo labels, got none"
    )


def test_training_from_a_cache_gives_the_same_bits(settings, run, tmp_path):
    assert simfast("prepare", *settings, "--steps", 2, "--cache", tmp_path / "cache") == 0
    train([*settings, "--out", str(tmp_path / "run"), "--steps", "2", "--cache", str(tmp_path / "cache")])
    first, second = (checkpoint.load(path / "last.pt") for path in (run[0], tmp_path / "run"))
    assert all(torch.equal(first["model"][name], tensor) for name, tensor in second["model"].items())
    assert first["last"] == second["last"]


def test_check_data_names_what_is_broken(settings, folders, tmp_path, capsys):
    assert simfast("check-data", *settings, "--steps", 2) == 0
    root = tmp_path / "target"
    shutil.copytree(folders / "target", root)
    (root / "train" / "images" / "2.png").write_bytes(b"not a picture")
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(root / "val" / "labels" / "1.png")
    capsys.readouterr()
    assert simfast("check-data", *settings, "--steps", 2, "--target-root", root) == 1
    found = capsys.readouterr().out
    assert "train/images/2.png" in found
    assert "val/labels/1.png" in found
    assert "77" in found


def test_errors_are_one_line_that_names_the_command(settings, tmp_path):
    message = simfast("prepare", *settings, "--steps", 2)
    assert message == "simfast prepare: cache: must name the folder to fill, got none"
    assert "nowhere" in simfast("evaluate", tmp_path / "nowhere")


def test_a_checkpoint_behind_the_options_is_refused(run):
    # Its settings are the starting point, which must be known before the options are read.
    message = "simfast evaluate: checkpoint: must come before the options, got --workers first"
    assert simfast("evaluate", "--workers", 0, run[0]) == message


def test_predict_asks_for_pictures(run, tmp_path):
    message = "simfast predict: inputs: must name a picture or a folder of pictures, got none"
    assert simfast("predict", run[0], "--out", tmp_path / "out") == message
