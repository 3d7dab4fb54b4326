"""Work is kept: what an error, a signal, a full disk or a bad file leaves of a run, and how it goes on."""

import json
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from kept_runs import ALONE, broken, equal, fail_at, on, state
from running import settings_of, train

from simfast.config import Config
from simfast.models import checkpoint
from simfast.report.metrics import read_metrics
from simfast.training import run
from simfast.training.failures import explained
from simfast.training.opening import open_data
from simfast.training.step import Trainer


@pytest.fixture
def data(folders, tmp_path):
    """The source and the target, to be changed."""
    return shutil.copytree(folders, tmp_path / "data")


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    """The folder of a run of five steps that nothing went wrong in, looked at in the end alone."""
    out = tmp_path_factory.mktemp("straight")
    train([*settings, "--eval-every", "50", "--steps", "5", "--out", str(out)])
    return out


def test_a_bad_file_in_the_middle_saves_first_and_the_mended_run_equals_a_straight_one(
    straight, settings, data, tmp_path
):
    given = [*on(settings, data), "--eval-every", "50", "--steps", "5"]
    with pytest.MonkeyPatch.context() as patch:  # the sample before the first step would find it
        patch.setattr("simfast.training.opening.first_look", lambda *_: None)
        with (
            broken(data / "source/train/images/3.png"),
            pytest.raises(
                SystemExit, match=r"3\.png: .*--skip-bad-files N .*; .*last\.pt is of step \d; continue with --resume "
            ),
        ):
            train([*given, "--out", str(tmp_path / "run")])
    step = checkpoint.load(tmp_path / "run/last.pt")["step"]
    assert 1 <= step < 5
    train(["--resume", str(tmp_path / "run")])
    assert equal(state(tmp_path / "run/last.pt"), state(straight / "last.pt"))


@pytest.mark.parametrize("error", [RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_in_a_step_keeps_the_state_before_it_and_names_the_sizes(
    error, straight, settings, tmp_path, monkeypatch
):
    given = [*settings, "--eval-every", "50", "--steps", "5"]
    with monkeypatch.context() as patch:
        fail_at(patch, 3, error)
        rule = r"out of memory on the CPU with source 64x64, target 64x64, batch_size 1, resnet18 in fp32; "
        rule += r".*memory that other programs give back.*last\.pt is of step 2; continue with --resume"
        with pytest.raises(SystemExit, match=rule):
            train([*given, "--out", str(tmp_path / "run")])
    train(["--resume", str(tmp_path / "run")])
    assert equal(state(tmp_path / "run/last.pt"), state(straight / "last.pt"))


def test_of_too_little_memory_for_an_op_on_a_gpu_the_gpu_is_told():
    error = MemoryError("segment_mean: means: no memory for float32 [1, 2]")  # all that torch 2.11 lets an op know
    trainer = SimpleNamespace(device=torch.device("cuda"), precision="fp32")
    said = str(explained(error, Config(), trainer))
    assert re.search("on the GPU with .* in fp32; .*--precision bf16 .*--fuse norms --memory low", said)
    assert "--memory" not in str(explained(error, Config(batch_norm="frozen"), trainer))  # they keep no more without it


def test_what_helps_most_where_memory_is_short_is_said_first():
    error = RuntimeError("the step does not fit into a CUDA graph")
    error.__cause__ = MemoryError()
    config = Config(batch_size=5, workers=2, source_size=(128, 64), target_size=(512, 40))
    remedy = "what helps most in a new run is --batch-size 2 (else --target-size 384 32, fewer --workers)"
    assert str(explained(error, config)).endswith(remedy)


def test_no_smaller_size_is_advised_where_the_network_alone_is_too_large():
    settings = {"source_size": (128, 64), "target_size": (96, 96), "workers": 0}
    large, small = (str(explained(MemoryError(), Config(arch=arch, **settings))) for arch in ("resnet101", "resnet18"))
    assert large.endswith("what helps most in a new run is --arch resnet18")
    assert small.endswith("what helps is memory that other programs give back")


def test_an_error_in_the_first_step_names_no_checkpoint_and_leaves_none(settings, tmp_path, monkeypatch):
    fail_at(monkeypatch, 1, OSError("stopped"), Trainer, "step")
    with pytest.raises(SystemExit, match=r"stopped$"):
        train([*settings, *ALONE, "--steps", "2", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_an_error_after_which_saving_fails_too_names_both_and_what_there_is(settings, tmp_path, monkeypatch):
    fail_at(monkeypatch, 4, OSError("stopped"), Trainer, "step")
    fail_at(monkeypatch, 3, OSError(28, "No space left on device"), checkpoint, "save")
    rule = r"stopped; the state after step 3 could not be saved: .*No space left.*; \S*last\.pt is of step 2; continue"
    with pytest.raises(SystemExit, match=rule):
        train([*settings, *ALONE, "--steps", "4", "--out", str(tmp_path)])


def test_a_fault_of_ours_keeps_its_traceback_and_the_work(settings, tmp_path, monkeypatch, capsys):
    fail_at(monkeypatch, 2, KeyError("ours"), Trainer, "step")
    with pytest.raises(KeyError, match="ours"):
        train([*settings, *ALONE, "--steps", "2", "--out", str(tmp_path)])
    assert f"last.pt is of step 1; continue with --resume {tmp_path}\n" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1


def test_an_error_in_one_of_both_stages_names_the_folder_with_which_both_go_on(settings, tmp_path, monkeypatch, capsys):
    for call in (2, 3):
        fail_at(monkeypatch, call, OSError("stopped"), Trainer, "step")
    rule = rf"stage1/last\.pt is of step 1; continue with --resume {tmp_path}$"
    for given in ([*settings, "--stage", "all", "--steps", "2", "--out", str(tmp_path)], ["--resume", str(tmp_path)]):
        with pytest.raises(SystemExit, match=rule):
            train(given)
        said = capsys.readouterr().out
        assert "run folder: " in said
        assert "continue with" not in said  # once, by the error


def test_a_step_that_fails_between_two_optimisers_is_not_saved(settings, tmp_path, monkeypatch):
    fail_at(monkeypatch, 4, OSError("half-way"), torch.optim.SGD, "step")
    with pytest.raises(SystemExit, match=r"half-way; the state after step 3 is not sound .*is of step 2; continue"):
        train([*settings, "--steps", "4", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_a_look_that_an_error_prevented_is_made_when_the_run_goes_on(settings, data, tmp_path):
    given = [*on(settings, data), *ALONE, "--steps", "4"]
    train([*given, "--out", str(tmp_path / "straight")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simfast.training.opening.first_look", lambda *_: None)
        with broken(data / "target/val/images/1.png"), pytest.raises(SystemExit, match=r"1\.png: .*is of step 2"):
            train([*given, "--out", str(tmp_path / "run")])
    train(["--resume", str(tmp_path / "run")])
    assert equal(state(tmp_path / "run/last.pt"), state(tmp_path / "straight/last.pt"))
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "straight")]
    assert rows[0] == rows[1]
    assert (tmp_path / "run/panel-000002.png").exists()


def test_a_look_whose_panel_failed_has_one_row_of_metrics(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 1, OSError(28, "No space left on device", "panel"), run, "save_panel")
        with pytest.raises(SystemExit, match=r"No space left.*last\.pt is of step 2"):
            train([*settings, *ALONE, "--steps", "4", "--out", str(tmp_path)])
    train(["--resume", str(tmp_path)])
    looks = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "eval"]
    assert looks == [2, 4]


@pytest.mark.parametrize("every", ["2", "50"])
def test_a_run_that_is_to_end_where_it_was_stopped_is_looked_at_there(every, settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 4, OSError("stopped"), Trainer, "step")
        with pytest.raises(SystemExit, match=r"last\.pt is of step 3"):
            train([*settings, *ALONE, "--steps", "6", "--eval-every", every, "--out", str(tmp_path)])
    result = train(["--resume", str(tmp_path), "--steps", "3"])
    assert result["last"]["step"] == 3
    assert checkpoint.load(tmp_path / "last.pt")["last"] == result["last"]
    assert (tmp_path / "panel-000003.png").exists()


def test_a_full_disk_names_the_file_and_what_is_kept(settings, tmp_path, monkeypatch):
    fail_at(monkeypatch, 1, OSError(28, "No space left on device", "x/best.pt.part"), checkpoint, "save")
    with pytest.raises(SystemExit, match=r"No space left.*best\.pt.*; .*last\.pt is of step 2; continue with --resume"):
        train([*settings, *ALONE, "--steps", "4", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 2  # there was room again


def test_a_run_that_is_killed_between_its_first_two_checkpoints_goes_on(settings, tmp_path, monkeypatch):
    given = [*settings, "--steps", "4"]
    train([*given, "--out", str(tmp_path / "straight")])
    with monkeypatch.context() as patch:
        fail_at(patch, 2, KeyboardInterrupt(), checkpoint, "save")
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train([*given, "--out", str(tmp_path / "run")])
    train(["--resume", str(tmp_path / "run")])
    for name in ("last.pt", "best.pt"):
        assert equal(state(tmp_path / "run" / name), state(tmp_path / "straight" / name))


@pytest.fixture(scope="module")
def rising(settings, tmp_path_factory):
    """The folder of a run of five steps of which each look was the best so far."""
    out = tmp_path_factory.mktemp("rising")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "is_better", lambda *_: True)
        train([*settings, "--steps", "5", "--eval-every", "2", "--out", str(out)])
    return out


@pytest.mark.parametrize(("saves", "kept", "step"), [(1, "last.pt", 2), (3, "best.pt", 4)])
def test_a_disk_with_room_for_one_of_two_checkpoints_keeps_it_and_says_how_to_go_on(
    saves, kept, step, rising, settings, tmp_path, monkeypatch
):
    given, out = [*settings, "--steps", "5", "--eval-every", "2"], tmp_path / "run"
    monkeypatch.setattr(run, "is_better", lambda *_: True)
    with monkeypatch.context() as patch:
        save, room = checkpoint.save, iter(range(saves))

        def full(path, *arguments, **options):
            if next(room, None) is None:
                raise OSError(28, "No space left on device", str(path))
            save(path, *arguments, **options)

        patch.setattr(checkpoint, "save", full)
        given_again = str(out if kept == "last.pt" else out / kept)
        rule = rf"No space left on device: .*; {out / kept} is of step {step}; continue with --resume {given_again}$"
        with pytest.raises(SystemExit, match=rule):
            train([*given, "--out", str(out)])
    train(["--resume", given_again])
    for name in ("last.pt", "best.pt"):
        assert equal(state(out / name), state(rising / name))


# ----------------------------------------------------------------------------------------------------------------------
# Bad files that may be
# ----------------------------------------------------------------------------------------------------------------------


def test_bad_files_that_may_be_are_named_and_stood_in_for_with_any_workers_and_after_a_resume(
    settings, data, tmp_path, capsys
):
    given = [*on(settings, data), *ALONE, "--eval-every", "5", "--skip-bad-files", "1"]
    with broken(data / "source/train/images/2.png"):  # met once in each five steps
        train([*given, "--steps", "10", "--out", str(tmp_path / "straight")])
        said = capsys.readouterr().out
        assert said.count("bad file 1 of up to 1, the next one stands in for it: ") == 1
        assert f"{data / 'source/train/images/2.png'}: must be a readable picture" in said
        train([*given, "--workers", "2", "--steps", "5", "--out", str(tmp_path / "run")])
        train(["--resume", str(tmp_path / "run"), "--steps", "10"])
    assert (tmp_path / "run/log.txt").read_text().count("bad file 1 of up to 1") == 1
    assert equal(state(tmp_path / "run/last.pt"), state(tmp_path / "straight/last.pt"))


@pytest.mark.parametrize("bad", [(1, 2), (2, 4)], ids=["apart in the order", "in a row"])
def test_more_bad_files_than_may_be_are_an_error(bad, settings, data, tmp_path):
    given = [*on(settings, data), *ALONE, "--eval-every", "50", "--steps", "5", "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simfast.training.opening.first_look", lambda *_: None)
        with broken(data / f"source/train/images/{bad[0]}.png"), broken(data / f"source/train/labels/{bad[1]}.png"):
            with pytest.raises(SystemExit, match=r"skip_bad_files: more than 1 bad files, with source: \d\).*--resume"):
                train([*given, "--skip-bad-files", "1"])
            result = train(["--resume", str(tmp_path / "run"), "--skip-bad-files", "2"])
    assert result["step"] == 5


def test_both_stages_go_on_without_a_bad_photograph_where_nothing_is_labelled(settings, data, tmp_path, capsys):
    given = [*on(settings, data), "--eval-split", "none", "--steps", "2", "--eval-every", "1", "--skip-bad-files", "1"]
    bad = data / "target/train/images/1.png"
    with broken(bad), broken(data / "source/train/labels/0.png"):
        found = train([*given, "--stage", "all", "--out", str(tmp_path / "run")])
    assert [found[stage]["signals"]["images"] for stage in ("stage1", "stage2")] == [3, 3]
    assert [found[stage]["signals"]["label_maps"] for stage in ("stage1", "stage2")] == [4, 4]
    made = json.loads((tmp_path / "run/stage2/pseudo-labels/thresholds.json").read_text())
    assert list(made["bad_files"]) == ["1"]
    assert capsys.readouterr().out.count(f"bad file 1 of up to 1, left out: {bad}: must be a readable picture") == 3


@pytest.mark.parametrize("lead", [True, False])
def test_the_bad_files_of_one_process_do_not_count_for_another_one_after_a_resume(lead, settings, monkeypatch):
    monkeypatch.setattr("simfast.runtime.distributed.is_lead", lambda: lead)
    met = {"source: 1": "bad"}  # by the process that writes
    config = settings_of([*settings, *ALONE, "--steps", "2", "--skip-bad-files", "1"])
    loader, *_ = open_data(config, torch.device("cpu"), 1, None, {"bad_files": met})
    assert loader.skipped == (met if lead else {})


# ----------------------------------------------------------------------------------------------------------------------
# Two at a time, and a run that is left alone
# ----------------------------------------------------------------------------------------------------------------------


def command(settings, out, *more):
    return [sys.executable, "-m", "simfast", "train", *settings, *ALONE, "--out", str(out), *more]


def test_a_run_is_alone_in_its_folder_and_sighup_saves_it(settings, tmp_path):
    out = tmp_path / "run"
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup
    argv = command(settings, out, "--eval-every", "1", "--steps", "20")
    with open("/dev/full", "w") as lost:  # as the terminal is by then
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=lost, preexec_fn=heard)
    try:
        while not (out / "last.pt").exists():
            assert process.poll() is None
        for second in (["--resume", str(out)], [*settings, *ALONE, "--steps", "1", "--out", str(out)]):
            with pytest.raises(SystemExit, match=f"must be used by one program at a time, got .*{process.pid}"):
                train(second)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 128 + signal.SIGHUP
    finally:
        process.kill()
    step = checkpoint.load(out / "last.pt")["step"]
    assert 1 <= step < 20
    assert not (out / ".lock").exists()
    (out / "panel-000009.png.part").write_bytes(b"half")
    assert train(["--resume", str(out), "--steps", str(step + 1)])["step"] == step + 1
    assert not list(out.glob("*.part"))


def test_an_error_stream_that_is_full_or_closed_ends_no_run(settings, tmp_path):
    for name, end in (("full", "2> /dev/full"), ("closed", "2>&-")):
        line = f"{subprocess.list2cmdline(command(settings, tmp_path / name, '--steps', '1'))} > /dev/null {end}"
        assert subprocess.run(["sh", "-c", line]).returncode == 0
        assert checkpoint.load(tmp_path / name / "last.pt")["step"] == 1
