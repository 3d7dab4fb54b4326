"""A run goes on wherever it and its data lie, from either of its checkpoints, and never on other data or networks."""

import shutil

import pytest
import torch
from kept_runs import ALONE, at, equal, fail_at, on, places, state
from running import train

from simfast.models import checkpoint
from simfast.report.metrics import read_metrics
from simfast.training import run


@pytest.fixture
def data(folders, tmp_path):
    """The source and the target, to be changed."""
    return shutil.copytree(folders, tmp_path / "data")


def test_data_and_run_folder_move_and_the_bits_stay(settings, data, tmp_path):
    given = [*on(settings, data), *ALONE]
    train([*given, "--steps", "4", "--out", str(tmp_path / "straight")])
    train([*given, "--steps", "2", "--out", str(tmp_path / "run")])
    moved = data.rename(tmp_path / "moved")
    run = (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="--source-root"):
        train(["--resume", str(run), "--steps", "4"])
    train(["--resume", str(run), "--steps", "4", "--workers", "1", *places(moved)])
    assert equal(state(run / "last.pt"), state(tmp_path / "straight/last.pt"))


def test_other_data_in_the_same_place_are_refused_at_a_resume(settings, data, tmp_path):
    train([*on(settings, data), *ALONE, "--steps", "2", "--out", str(tmp_path / "run")])
    for kind in ("images", "labels"):
        (data / f"source/train/{kind}/4.png").rename(data / f"source/train/{kind}/5.png")
    with pytest.raises(SystemExit, match=r"source: must have images of the same names .*got other ones \(of 5 images"):
        train(["--resume", str(tmp_path / "run"), "--steps", "4"])
    for kind in ("images", "labels"):
        (data / f"source/train/{kind}/5.png").unlink()
    with pytest.raises(SystemExit, match=r"source: must have as many images .*got 4, not 5"):
        train(["--resume", str(tmp_path / "run"), "--steps", "4"])
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 2


def test_a_relative_root_is_found_from_another_working_folder_and_stays_as_given(
    settings, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(data)
    given = [*at(settings, "source", "target"), *ALONE]
    train([*given, "--steps", "1", "--out", str(tmp_path / "run")])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    train(["--resume", "run", "--steps", "2"])
    assert f"source_root: source is not here, so it means {data / 'source'}" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run/last.pt")["config"]["source_root"] == "source"
    assert str(data) not in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.parametrize("place", ["typo", "../typo"])
def test_a_root_given_anew_is_not_read_from_where_the_run_began(place, settings, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    train([*at(settings, "../data/source", "target"), *ALONE, "--steps", "1", "--out", str(tmp_path / "run")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=rf"{place}.*--source-root"):
        train(["--resume", "run", "--steps", "2", "--source-root", place])
    assert train(["--resume", "run", "--steps", "2"])["step"] == 2


def test_both_stages_go_on_between_them_from_another_working_folder(settings, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    given = [*at(settings, "source", "target"), "--stage", "all", "--steps", "1", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        fail_at(patch, 1, OSError("stopped"), run, "find_pseudo_labels")
        with pytest.raises(SystemExit, match="stopped"):
            train(given)
    monkeypatch.chdir(tmp_path)
    assert train(["--resume", "run"])["stage2"]["step"] == 1


def test_stage_2_finds_relative_weights_from_another_working_folder(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train([*settings, *ALONE, "--steps", "1", "--out", "first"])
    with monkeypatch.context() as patch:
        fail_at(patch, 2, OSError("stopped"))
        with pytest.raises(SystemExit, match="stopped"):
            train([*settings, "--stage", "all", "--weights", "first/best.pt", "--steps", "2", "--out", "run"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert train(["--resume", "../run"])["stage2"]["step"] == 2


def test_a_run_goes_on_in_its_precision_where_auto_means_another(settings, tmp_path, capsys):
    train([*settings, *ALONE, "--steps", "1", "--out", str(tmp_path)])
    begun = checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "last.pt", begun | {"precision": "bf16"})  # as from a GPU
    train(["--resume", str(tmp_path), "--steps", "2", "--device", "cpu"])
    assert "precision: stays bf16, in which the run began (auto is fp32 here)" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "last.pt")["precision"] == "bf16"


def test_a_run_goes_on_from_the_checkpoint_before_the_last(settings, tmp_path):
    train([*settings, "--eval-every", "1", "--steps", "3", "--out", str(tmp_path / "run")])
    straight = state(tmp_path / "run/last.pt")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert checkpoint.load(tmp_path / "run/previous.pt")["step"] == 2
    (tmp_path / "run/last.pt").write_bytes(b"damaged")
    train(["--resume", str(tmp_path / "run/previous.pt")])
    assert equal(state(tmp_path / "run/last.pt"), straight)
    assert read_metrics(tmp_path / "run/metrics.jsonl") == rows
    # What was damaged has not become the checkpoint before.
    assert checkpoint.load(tmp_path / "run/previous.pt")["step"] == 2
    assert checkpoint.load(tmp_path / "run/best.pt")["best"] == straight["best"]


def test_a_lost_best_checkpoint_is_said_and_sought_anew(settings, tmp_path, capsys):
    train([*settings, *ALONE, "--eval-every", "1", "--steps", "2", "--out", str(tmp_path)])
    kept = checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "last.pt", kept | {"best": kept["best"] | {"step": 1, "miou": 1.0}})
    (tmp_path / "best.pt").unlink()
    result = train(["--resume", str(tmp_path), "--steps", "3"])
    assert "best.pt is lost" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "best.pt")["best"] == result["best"]


def test_a_lost_best_checkpoint_that_the_last_one_is_comes_back(settings, tmp_path, capsys):
    train([*settings, *ALONE, "--steps", "2", "--out", str(tmp_path)])
    (tmp_path / "best.pt").unlink()
    train(["--resume", str(tmp_path)])
    assert "best.pt is lost" not in capsys.readouterr().out
    assert equal(state(tmp_path / "best.pt"), state(tmp_path / "last.pt"))


def test_a_finished_run_without_its_best_checkpoint_is_looked_at_once_more(settings, tmp_path):
    train([*settings, *ALONE, "--steps", "2", "--out", str(tmp_path)])
    kept = checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "last.pt", kept | {"best": kept["best"] | {"step": 1}})
    (tmp_path / "best.pt").unlink()
    result = train(["--resume", str(tmp_path)])
    assert result["best"] == result["last"] == checkpoint.load(tmp_path / "best.pt")["best"]


def without(key):
    return lambda state: state.pop(key)


def changed(key, value):
    return lambda state: state.update({key: value})


def wider(state):
    state["model"]["conv1.weight"] = torch.zeros(3)


def whole_numbers(state):
    state["model"]["conv1.weight"] = state["model"]["conv1.weight"].int()


def complex_numbers(state):
    state["optimizer"]["state"][0]["momentum_buffer"] = state["model"]["conv1.weight"].to(torch.complex64)


def without_a_bank(state):
    del state["matching"]["bank.storage"]


MENDED = {
    "no step": (without("step"), "must have the key 'step'"),
    "no config": (without("config"), "must have the key 'config'"),
    "no random": (without("random"), "must have the key 'random'"),
    "a step of another type": (changed("step", "2"), "'step' must be the steps done, got str '2'"),
    "a row of another type": (changed("best", [1]), "'best' must be a row of metrics or None, got list"),
    "a row without a step": (changed("last", {"miou": 0.1}), "'last' must be a row of metrics with step and miou"),
    "states of another type": (changed("random", {"cpu": 1}), "'random' must hold states of generators"),
    "no network": (without("model"), "must have the key 'model'"),
    "no discriminator": (without("discriminator"), "must have the key 'discriminator'"),
    "another shape": (wider, r"model: conv1\.weight: must be a floating tensor \[64, 3, 7, 7\], got a float32 tensor"),
    "whole numbers": (whole_numbers, r"model: conv1\.weight: must be a floating tensor .* got a int32 tensor"),
    "complex numbers": (complex_numbers, r"optimizer: state: 0: momentum_buffer: must be a floating tensor"),
    "no bank": (without_a_bank, r"must fit to these settings, got .*bank\.storage"),
    "settings of another type": (changed("config", 3), "'config' must be the settings, got int 3"),
}


@pytest.fixture(scope="module")
def begun(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("begun")
    train([*settings, "--steps", "1", "--eval-every", "1", "--out", str(out)])
    return checkpoint.load(out / "last.pt")


@pytest.mark.parametrize(("change", "message"), MENDED.values(), ids=MENDED)
def test_a_checkpoint_that_cannot_be_gone_on_from_names_file_and_key(change, message, begun, tmp_path):
    state = begun | {key: dict(begun[key]) for key in ("model", "matching", "optimizer")}
    state["optimizer"]["state"] = {key: dict(value) for key, value in state["optimizer"]["state"].items()}
    del state["format"]
    change(state)
    checkpoint.save(tmp_path / "last.pt", state)
    with pytest.raises(SystemExit, match=rf"last\.pt.*{message}") as error:
        train(["--resume", str(tmp_path), "--steps", "2"])
    assert "\n" not in str(error.value)
