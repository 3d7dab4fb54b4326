"""Runs whose target has no labels: no score, best is last, signals in its place; and evaluation sets that are void."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from running import settings_of, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simfast.cli import call
from simfast.data import open_dataset
from simfast.data.loader import evaluation_loader
from simfast.inference.signals import find_signals
from simfast.models import checkpoint
from simfast.models.restore import restore_model
from simfast.report.metrics import read_metrics

SIGNALS = {"confidence", "entropy", "over_cap", "mirror", "share_distance"}


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def unlabelled(settings, folders, tmp_path):
    """Command line of a run of seconds whose target has images alone."""
    images = tmp_path / "target" / "train" / "images"
    shutil.copytree(folders / "target" / "train" / "images", images)
    return [*settings, "--target-root", str(tmp_path / "target"), "--eval-split", "none"]


def weights(path):
    return checkpoint.load(path)["model"]


def test_a_run_without_labels_leaves_signals_and_pictures_and_its_best_is_its_last(unlabelled, tmp_path, capsys):
    out = tmp_path / "run"
    result = train([*unlabelled, "--steps", "3", "--out", str(out)])
    assert result["best"] == result["last"]
    assert result["last"]["step"] == 3
    assert result["last"]["miou"] is None
    assert result["last"].keys() > SIGNALS
    assert "report" not in result
    assert result["signals"]["images"] == 4
    assert result["signals"]["label_maps"] == 5
    assert sum(result["signals"]["label_shares"].values()) == pytest.approx(1)
    assert json.loads((out / "result.json").read_text()) == result
    first, second = (checkpoint.load(out / name) for name in ("best.pt", "last.pt"))
    assert all(torch.equal(x, second["model"][name]) for name, x in first["model"].items())
    assert first["step"] == second["step"] == 3

    rows = [row for row in read_metrics(out / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [2, 3]
    assert rows[-1] == {"kind": "eval"} | result["last"]
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {f"eval/{name}" for name in SIGNALS} < set(board.Tags()["scalars"])
    assert "eval/miou" not in board.Tags()["scalars"]
    assert Image.open(out / "panel-000003.png").size == (2 * 64, 64)  # no truth
    assert (out / "curve.png").exists()
    said = capsys.readouterr().out
    assert "no labels to score on, signals on 4 of 4 target images" in said
    assert "step 3: confidence " in said
    assert "mIoU" not in said

    restored = restore_model(out / "best.pt")
    photographs = open_dataset("folder", tmp_path / "target", "train", (64, 64), labelled=False)
    found, _ = find_signals(
        restored.model, evaluation_loader(photographs, 1, 0), restored.convention, restored.device, 0.9
    )
    assert result["last"]["confidence"] == pytest.approx(found.confidence, rel=1e-6)
    assert [result["last"][f"share/{name}"] for name in ("road", "person")] == [found.shares[0], found.shares[11]]


def test_a_resumed_run_without_labels_equals_a_straight_one(unlabelled, tmp_path):
    straight = train([*unlabelled, "--steps", "4", "--out", str(tmp_path / "straight")])
    train([*unlabelled, "--steps", "2", "--out", str(tmp_path / "parts")])
    resumed = train(["--resume", str(tmp_path / "parts"), "--steps", "4"])
    assert resumed["last"] == straight["last"]
    assert resumed["best"] == straight["best"]


def test_both_stages_train_without_a_label_of_the_target(unlabelled, tmp_path):
    out = tmp_path / "all"
    results = train([*unlabelled, "--stage", "all", "--steps", "2", "--out", str(out)])
    assert [results[f"stage{n}"]["best"]["step"] for n in (1, 2)] == [2, 2]
    info = json.loads((out / "stage2" / "pseudo-labels" / "thresholds.json").read_text())["info"]
    assert info["checkpoint"].endswith("stage1/best.pt")
    assert read_metrics(out / "stage2" / "metrics.jsonl")[0]["seg_target"] > 0
    call(["predict", str(out), str(tmp_path / "target"), "--out", str(tmp_path / "predictions"), "--workers", "0"])
    assert len(list((tmp_path / "predictions" / "labels").rglob("*.png"))) == 4


def test_a_labelled_part_to_report_on_is_scored_at_the_end(unlabelled, folders, tmp_path, capsys):
    shutil.copytree(folders / "target" / "val", tmp_path / "target" / "val")
    result = train([*unlabelled, "--steps", "1", "--report-split", "val", "--out", str(tmp_path / "run")])
    assert result["last"]["miou"] is None
    assert result["report"]["best"] == result["report"]["last"]
    assert result["report"]["last"]["miou"] is not None
    said = capsys.readouterr().out
    assert "no labels to score on, best is last" in said
    assert "mIoU, 19 classes" in said


def test_the_target_s_own_labels_may_train_where_none_are_kept_to_score_on(settings, tmp_path):
    command = ["--method", "target-only", "--eval-split", "none", "--steps", "1", "--out", str(tmp_path)]
    result = train([*settings, *command])
    assert result["last"].keys() > SIGNALS
    assert result["signals"]["label_maps"] == 4


def test_a_stop_leaves_a_best_checkpoint_where_nothing_is_scored(unlabelled, tmp_path, monkeypatch):
    import signal

    from simfast.training.progress import TrainingProgress

    monkeypatch.setattr(TrainingProgress, "say", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train([*unlabelled, "--steps", "9", "--out", str(tmp_path / "run")])
    assert checkpoint.load(tmp_path / "run" / "best.pt")["step"] == 1
    monkeypatch.undo()
    assert train(["--resume", str(tmp_path / "run"), "--steps", "2"])["best"]["step"] == 2


def test_a_set_that_is_all_dont_care_is_named_and_stops_nothing(settings, folders, tmp_path, capsys):
    target = shutil.copytree(folders / "target", tmp_path / "target")
    labels = target / "val" / "labels"
    for file in labels.glob("*.png"):
        Image.new("L", Image.open(file).size, 255).save(file)
    out = tmp_path / "run"
    arguments = [*settings, "--target-root", str(target), "--method", "source-only", "--report-split", "val"]
    train([*arguments, "--steps", "2", "--out", str(out)])
    result = train(["--resume", str(out), "--steps", "4"])
    # Where nothing tells one network from another, the one that was trained longest is the best.
    for rows in (result, result["report"]):
        assert [(rows[name]["miou"], rows[name]["step"]) for name in ("last", "best")] == [(None, 4)] * 2
    last, best = weights(out / "last.pt"), weights(out / "best.pt")
    assert all(torch.equal(x, last[name]) for name, x in best.items())
    said = capsys.readouterr().out
    warning = f"{labels}: every pixel of all 2 label maps is don't care (255), so there is no score"
    assert warning in said
    assert "step 2: no class has an IoU" in said
    assert "inf" not in said
    assert call(["evaluate", str(out), "--workers", "0", "--report", str(tmp_path / "report.json")]) == 0
    said = capsys.readouterr().out
    assert warning in said
    assert json.loads((tmp_path / "report.json").read_text())["scores"]["miou"] is None


def test_what_cannot_be_evaluated_says_what_to_give(unlabelled, tmp_path):
    command = [*unlabelled, "--steps", "1", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"'val'.*give --eval-split none .* --eval-images and --eval-labels"):
        train([*command, "--eval-split", "val"])
    with pytest.raises(SystemExit, match=r"'test'.*give --report-split None"):
        train([*command, "--report-split", "test"])
    assert not (tmp_path / "run").exists()  # before the first step
    assert settings_of([*command, "--report-split", "None"]).report_split is None
    train([*unlabelled, "--method", "source-only", "--steps", "1", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"eval_split: must name a labelled part .* --eval-images and --eval-labels"):
        call(["evaluate", str(tmp_path / "run"), "--workers", "0"])


def test_a_labelled_set_apart_scores_in_place_of_the_target_s(unlabelled, folders, tmp_path, capsys):
    """Flat, beside the labels that a pattern finds, as a small set labelled by hand may be."""
    apart = tmp_path / "apart"
    apart.mkdir()
    for i in range(2):
        shutil.copy(folders / "target" / "val" / "images" / f"{i}.png", apart / f"{i}.png")
        shutil.copy(folders / "target" / "val" / "labels" / f"{i}.png", apart / f"{i}_L.png")
    command = [*unlabelled, "--method", "source-only", "--steps", "1"]
    given = ["--eval-images", str(apart), "--eval-labels", "{dir}/{stem}_L.png"]
    expected = train([*command, "--target-root", str(folders / "target"), "--eval-split", "val", "--out", f"{apart}-0"])
    found = train([*command, *given, "--eval-split", "test", "--out", str(tmp_path / "run")])
    assert found["last"] == expected["last"]
    assert f"2 held-out images ({apart}, in place of the target's 'test')" in capsys.readouterr().out
    assert Image.open(tmp_path / "run" / "panel-000001.png").size == (3 * 64, 64)

    # A run that had none may still be scored on them.
    train([*command, "--out", str(tmp_path / "none")])
    report = tmp_path / "report.json"
    call(["evaluate", str(tmp_path / "none"), *given, "--workers", "0", "--report", str(report)])
    scored = json.loads(report.read_text())
    assert (scored["data"], scored["images"]) == (str(apart), 2)
    assert scored["scores"]["miou"] == pytest.approx(expected["last"]["miou"])
    with pytest.raises(SystemExit, match="eval_labels: must be given with --eval-images"):
        train([*command, *given[:2], "--out", str(tmp_path / "half")])


def test_class_shares_are_those_of_a_mixture_of_sources(unlabelled, folders, tmp_path):
    shares = {"source": 1, "target": 3}
    command = ["--source", "folder", "--source-root", str(folders / "target")]  # beside that of the settings
    command += [part for share in shares.values() for part in ("--source-share", str(share))]
    result = train([*unlabelled, *command, "--method", "source-only", "--steps", "1", "--out", str(tmp_path / "run")])
    by_hand = np.zeros(256)
    for name, share in shares.items():
        dataset = open_dataset("folder", folders / name, "train", (64, 64))
        counts = np.bincount(np.concatenate([dataset.label(i).flatten() for i in range(len(dataset))]), minlength=256)
        by_hand += share / 4 * counts / counts[:19].sum()
    assert list(result["signals"]["label_shares"].values()) == pytest.approx(by_hand[:19].tolist())
    assert result["signals"]["label_maps"] == 9
