"""The folder of a run: never another one's, and none where a start comes to nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kept_runs import fail_at
from running import train

from simfast.config import Config
from simfast.models import checkpoint
from simfast.training import run
from simfast.training.folder import run_folder


def everything(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


BAD_STARTS = {  # and what the error says
    "data": (["--source-root", "nowhere"], "nowhere"),
    "weights": (["--weights", "nowhere.pth"], "path must be a file or a run folder, got no nowhere.pth"),
    "pseudo labels": (["--stage", "2", "--pseudo-labels", "nowhere"], "nowhere must be complete"),
    "the first of two stages": (["--stage", "all", "--source-root", "nowhere"], "nowhere"),
    "step mode": (["--step-mode", "graph"], "without a GPU"),
}
bad_starts = pytest.mark.parametrize(("arguments", "error"), BAD_STARTS.values(), ids=BAD_STARTS)


@bad_starts
def test_a_start_that_fails_leaves_nothing_behind(arguments, error, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ([], ["--out", "new/run"]):
        with pytest.raises(SystemExit, match=error):
            train([*settings, "--steps", "1", *arguments, *out])
        assert list(tmp_path.iterdir()) == []


@bad_starts
def test_a_start_that_fails_removes_nothing_that_was_there(arguments, error, settings, tmp_path):
    (tmp_path / "settings.yaml").write_text("lr: 1")
    (tmp_path / "tensorboard").mkdir()
    before = everything(tmp_path)
    with pytest.raises(SystemExit, match=error):
        train([*settings, "--steps", "1", *arguments, "--out", str(tmp_path)])
    assert everything(tmp_path) == before


def test_a_second_stage_that_fails_to_start_leaves_the_first(settings, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("simfast.training.run.find_pseudo_labels", fail)
    with pytest.raises(SystemExit, match="the disk is full"):
        train([*settings, "--stage", "all", "--steps", "1", "--out", str(tmp_path / "run")])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "stage1"}
    assert checkpoint.load(tmp_path / "run" / "stage1" / "last.pt")["step"] == 1


def test_a_second_stage_that_fails_to_start_keeps_its_pseudo_labels(settings, tmp_path, monkeypatch):
    fail_at(monkeypatch, 2, OSError("the disk is full"), run, "build_trainer")
    with pytest.raises(SystemExit, match="the disk is full"):
        train([*settings, "--stage", "all", "--steps", "1", "--out", str(tmp_path)])
    assert (tmp_path / "stage2/pseudo-labels/thresholds.json").exists()


KEPT = {  # and how the run goes on
    "stage1": "continue it with --resume {out}, or",
    "last.pt": "continue it with --resume {out}, or",
    "previous.pt": "continue it with --resume {out}/previous.pt, or",
    "best.pt": "continue it with --resume {out}/best.pt, or",
    "result.json": "choose another",
}


@pytest.mark.parametrize(("name", "remedy"), KEPT.items(), ids=KEPT)
def test_a_folder_that_keeps_anything_of_a_run_holds_a_run(name, remedy, settings, tmp_path):
    (tmp_path / name).mkdir() if name == "stage1" else (tmp_path / name).write_bytes(b"work")
    before = everything(tmp_path)
    for stage in ("1", "all"):
        with pytest.raises(
            SystemExit, match=rf"out: {tmp_path} holds a run already \({name}\); {remedy.format(out=tmp_path)}"
        ):
            train([*settings, "--stage", stage, "--steps", "1", "--out", str(tmp_path)])
    assert everything(tmp_path) == before


def test_an_error_after_a_step_keeps_the_folder(settings, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("simfast.training.run.save_panel", fail)
    with pytest.raises(SystemExit, match="the disk is full"):
        train([*settings, "--steps", "2", "--eval-every", "1", "--out", str(tmp_path / "run")])
    assert {"log.txt", "config.yaml", "metrics.jsonl"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_runs_that_begin_at_the_same_moment_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together = threading.Barrier(8)

    def begin(_):
        together.wait()
        with run_folder(Config()) as folder:
            return folder.path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(begin, range(8)))
    assert sorted(paths) == sorted(Path("runs").iterdir())
    assert len(set(paths)) == 8


def test_a_link_that_leads_nowhere_in_the_place_of_runs_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere")
    rule = "out: runs must be a folder or nothing yet, got a link that leads nowhere; choose another --out"
    with pytest.raises(ValueError, match=rule), run_folder(Config()):
        pass
    with pytest.raises(ValueError, match=rule), run_folder(Config(out=Path("runs/own"))):
        pass
