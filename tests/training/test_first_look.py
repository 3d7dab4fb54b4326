"""A run's look at a sample of its data before the first step."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from running import train

from simfast.models import checkpoint
from simfast.training import opening


@pytest.fixture
def source(settings, folders, tmp_path):
    """A copy of the source's folder, and a run's settings with it."""
    root = tmp_path / "source"
    shutil.copytree(folders / "source", root)
    here = [str(root) if value == str(folders / "source") else value for value in settings]
    return root, [*here, "--out", str(tmp_path / "run"), "--steps", "1"]


def repaint(folder, paint):
    for path in folder.glob("*.png"):
        Image.fromarray(paint(np.asarray(Image.open(path)))).save(path)


def warnings(out):
    """What the look has logged in a run's folder."""
    lines = [line.partition(" ")[2] for line in (out / "log.txt").read_text().splitlines()]
    return [line for line in lines if line.startswith(("source: ", "target: ", "held-out: ", "seen in a sample"))]


def test_a_warning_is_logged_once_and_not_where_a_run_goes_on(source, tmp_path):
    root, settings = source
    repaint(root / "train/labels", lambda label: np.where(label == 13, 255, 0).astype(np.uint8))
    train(settings)
    what, hint = said = warnings(tmp_path / "run")
    assert what.startswith(f"source: {root}/train/labels: road is the only class in 5 label maps")
    assert "`simfast check-data` reads all of them" in hint
    train(["--resume", str(tmp_path / "run"), "--steps", "2"])
    assert warnings(tmp_path / "run") == said


def test_nothing_is_trained_on_labels_without_a_class(source, tmp_path):
    root, settings = source
    repaint(root / "train/labels", lambda label: np.full_like(label, 255))
    with pytest.raises(SystemExit, match=f"{root}/train/labels: a label map must have a pixel of some class"):
        train(settings)
    assert not list(tmp_path.glob("run/*.pt"))


def test_what_to_do_without_a_few_bad_files_is_said_and_not_where_most_are_bad(source):
    root, settings = source
    files = sorted((root / "train/images").glob("*"))
    for i, path in enumerate(files):
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(SystemExit, match="must be a readable picture") as error:
            train(settings)
        assert ("--skip-bad-files N" in str(error.value)) == (2 * (i + 1) <= len(files))


def test_a_run_does_not_begin_to_train_on_the_labels_that_it_scores_on_but_goes_on(settings, tmp_path, monkeypatch):
    given = [*settings, "--eval-split", "train", "--steps", "1", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"images to score on are to be others .* got 4 of 4 in the target, too"):
        train([*given, "--method", "target-only"])
    assert not list(tmp_path.glob("run/*.pt"))
    with monkeypatch.context() as patch:  # as an older version began it
        patch.setattr(opening, "require_apart", lambda *_: None)
        train([*given, "--method", "target-only"])
    train(["--resume", str(tmp_path / "run"), "--steps", "2"])
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 2


def test_a_report_on_what_is_trained_on_without_labels_is_warned_of(settings, tmp_path):
    given = [*settings, "--report-split", "train", "--steps", "1", "--out", str(tmp_path / "run")]
    train(given)
    told = [line.partition(" ")[2] for line in (tmp_path / "run/log.txt").read_text().splitlines()]
    assert [line.partition(": ")[0] for line in told if "images to score on" in line] == ["report"]


def test_the_look_changes_no_bit_of_a_run(settings, tmp_path, monkeypatch):
    states = []
    for look in (opening.first_look, lambda *_: None):
        monkeypatch.setattr(opening, "first_look", look)
        out = tmp_path / str(len(states))
        train([*settings, "--out", str(out), "--steps", "1"])
        states.append(checkpoint.load(out / "last.pt"))
    assert all(torch.equal(states[0]["model"][name], tensor) for name, tensor in states[1]["model"].items())
    assert torch.equal(states[0]["random"]["cpu"], states[1]["random"]["cpu"])
    assert warnings(tmp_path / "0") == []
