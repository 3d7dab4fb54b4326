"""Work is kept: what an error, a signal, a bad file or a moved folder leaves of a run, and how it goes on."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from running import settings_of, train

from simfast.models import checkpoint
from simfast.report.metrics import read_metrics
from simfast.runtime.console import StopSignals
from simfast.training import run
from simfast.training.opening import open_data
from simfast.training.step import Trainer

ALONE = ("--method", "source-only")
RESUMED_ALIKE = ("model", "optimizer", "matching", "discriminator", "step", "last", "best", "random")


@pytest.fixture
def data(folders, tmp_path):
    """The source and the target, to be changed."""
    return shutil.copytree(folders, tmp_path / "data")


def at(settings, source, target):
    """The settings with other roots."""
    given = list(settings)
    for option, root in (("--source-root", source), ("--target-root", target)):
        given[given.index(option) + 1] = str(root)
    return given


def on(settings, data):
    return at(settings, data / "source", data / "target")


def places(data):
    return ["--source-root", str(data / "source"), "--target-root", str(data / "target")]


def equal(first, second):
    """Bit for bit, all the way down."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def state(path):
    found = checkpoint.load(path)
    return {key: found[key] for key in RESUMED_ALIKE if key in found}


@contextlib.contextmanager
def broken(path):
    """A file that cannot be read."""
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    yield
    path.write_bytes(whole)


def fail_at(monkeypatch, step, error, owner=Trainer, name="_discriminator_loss"):
    """An error at a call, counted from 1."""
    before, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == step:
            raise error
        return before(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


def test_a_bad_file_in_the_middle_saves_first_and_the_mended_run_equals_a_straight_one(settings, data, tmp_path):
    given = [*on(settings, data), "--eval-every", "50", "--steps", "5"]
    train([*given, "--out", str(tmp_path / "straight")])
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
    assert equal(state(tmp_path / "run/last.pt"), state(tmp_path / "straight/last.pt"))


@pytest.mark.parametrize("error", [RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_in_a_step_keeps_the_state_before_it_and_names_the_sizes(error, settings, tmp_path, monkeypatch):
    given = [*settings, "--eval-every", "50", "--steps", "4"]
    train([*given, "--out", str(tmp_path / "straight")])
    with monkeypatch.context() as patch:
        fail_at(patch, 3, error)
        rule = r"out of memory on the CPU with source 64x64, target 64x64, batch_size 1, resnet18 in fp32; "
        rule += r".*--source-size 48 48.*last\.pt is of step 2; continue with --resume"
        with pytest.raises(SystemExit, match=rule):
            train([*given, "--out", str(tmp_path / "run")])
    train(["--resume", str(tmp_path / "run")])
    assert equal(state(tmp_path / "run/last.pt"), state(tmp_path / "straight/last.pt"))


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
    fail_at(monkeypatch, 3, OSError(28, "No space left on device", "x/best.pt.part"), checkpoint, "save")
    with pytest.raises(SystemExit, match=r"No space left.*best\.pt.*; .*last\.pt is of step 4; continue with --resume"):
        train([*settings, *ALONE, "--steps", "6", "--out", str(tmp_path)])


def test_a_disk_with_room_for_the_best_checkpoint_alone_keeps_it_and_says_how_to_go_on(settings, tmp_path, monkeypatch):
    given = [*settings, "--steps", "3", "--eval-every", "2"]
    train([*given, "--out", str(tmp_path / "straight")])
    with monkeypatch.context() as patch:
        save = checkpoint.save

        def full(path, *arguments, **options):
            if path.name == "last.pt":
                raise OSError(28, "No space left on device", str(path))
            save(path, *arguments, **options)

        patch.setattr(checkpoint, "save", full)
        rule = r"No space left on device: '\S*last\.pt'; \S*best\.pt is of step 2; continue with --resume \S*best\.pt$"
        with pytest.raises(SystemExit, match=rule):
            train([*given, "--out", str(tmp_path / "run")])
    train(["--resume", str(tmp_path / "run/best.pt")])
    assert equal(state(tmp_path / "run/last.pt"), state(tmp_path / "straight/last.pt"))


# ----------------------------------------------------------------------------------------------------------------------
# Not finite
# ----------------------------------------------------------------------------------------------------------------------


def poison(monkeypatch, name, step):
    """A loss that is not finite from a step on."""
    before = Trainer.step

    def wrapped(self, number, *batch):
        losses = before(self, number, *batch)
        return losses | ({name: losses[name] / 0} if number + 1 >= step else {})

    monkeypatch.setattr(Trainer, "step", wrapped)


def test_the_loss_that_went_first_is_told_and_the_checkpoint_is_from_before(settings, tmp_path, monkeypatch):
    poison(monkeypatch, "stuff", 3)
    rule = "the losses are not finite at step 3: stuff first; .*--lambda-ci; .*last.pt is of step 2; continue"
    with pytest.raises(SystemExit, match=rule):
        train([*settings, "--log-every", "50", "--steps", "4", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_a_signal_after_a_divergence_saves_nothing(settings, tmp_path, monkeypatch):
    poison(monkeypatch, "seg", 3)
    with monkeypatch.context() as patch:
        # As a signal that arrives in step 3, before the losses are read.
        patch.setattr(StopSignals, "received", None, raising=False)
        before = Trainer.step

        def step(self, number, *batch):
            if number == 2:
                signal.raise_signal(signal.SIGTERM)
            return before(self, number, *batch)

        patch.setattr(Trainer, "step", step)
        with pytest.raises(SystemExit, match="not finite at step 3: seg first"):
            train([*settings, *ALONE, "--log-every", "50", "--steps", "9", "--out", str(tmp_path)])
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2


def test_banks_that_are_not_finite_are_not_saved(settings, tmp_path, monkeypatch):
    before = Trainer.step

    def step(self, number, *batch):
        losses = before(self, number, *batch)
        if number == 3:
            self.matching.bank.storage[0, 0] = torch.nan
        return losses

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(SystemExit, match=r"what is remembered is not finite after step 4.*is of step 2"):
        train([*settings, "--log-every", "50", "--steps", "4", "--out", str(tmp_path), "--lambda-ci", "0"])


def test_fp16_that_leaves_out_every_step_is_seen(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.amp.GradScaler._unscale_grads_", lambda *_: {torch.device("cpu"): torch.ones(())})
    with pytest.raises(SystemExit, match=r"steps 1[0-9] to 1[0-9] were all left out.*--precision bf16"):
        train([*settings, *ALONE, "--precision", "fp16", "--log-every", "2", "--eval-every", "50", "--steps", "20",
               "--out", str(tmp_path)])  # fmt: skip
    assert "steps 1 to 2 were all left out, as their gradients are not finite in fp16" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# Bad files that may be
# ----------------------------------------------------------------------------------------------------------------------


def test_bad_files_that_may_be_are_named_and_stood_in_for_with_any_workers_and_after_a_resume(
    settings, data, tmp_path, capsys
):
    given = [*on(settings, data), *ALONE, "--eval-every", "3", "--skip-bad-files", "1"]
    with broken(data / "source/train/images/2.png"):
        train([*given, "--steps", "6", "--out", str(tmp_path / "straight")])
        said = capsys.readouterr().out
        assert said.count("bad file 1 of up to 1, the next one stands in for it: ") == 1
        assert f"{data / 'source/train/images/2.png'}: must be a readable picture" in said
        train([*given, "--workers", "2", "--steps", "3", "--out", str(tmp_path / "run")])
        train(["--resume", str(tmp_path / "run"), "--steps", "6"])
    assert equal(state(tmp_path / "run/last.pt"), state(tmp_path / "straight/last.pt"))


def test_more_bad_files_than_may_be_are_an_error(settings, data, tmp_path):
    given = [*on(settings, data), *ALONE, "--eval-every", "50", "--steps", "9", "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simfast.training.opening.first_look", lambda *_: None)
        with broken(data / "source/train/images/2.png"), broken(data / "source/train/labels/4.png"):
            with pytest.raises(SystemExit, match=r"skip_bad_files: more than 1 bad files, with source: \d\).*--resume"):
                train([*given, "--skip-bad-files", "1"])
            result = train(["--resume", str(tmp_path / "run"), "--skip-bad-files", "2"])
    assert result["step"] == 9


@pytest.mark.parametrize("lead", [True, False])
def test_the_bad_files_of_one_process_do_not_count_for_another_one_after_a_resume(lead, settings, monkeypatch):
    monkeypatch.setattr("simfast.runtime.distributed.is_lead", lambda: lead)
    met = {"source: 1": "bad"}  # by the process that writes
    config = settings_of([*settings, *ALONE, "--steps", "2", "--skip-bad-files", "1"])
    loader, *_ = open_data(config, torch.device("cpu"), 1, None, {"bad_files": met})
    assert loader.skipped == (met if lead else {})


# ----------------------------------------------------------------------------------------------------------------------
# A run that moves
# ----------------------------------------------------------------------------------------------------------------------


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
    assert f"source_root: source is not here, so it is read from {data / 'source'}" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run/last.pt")["config"]["source_root"] == "source"
    assert str(data) not in (tmp_path / "run/config.yaml").read_text()


def test_a_run_goes_on_in_its_precision_where_auto_means_another(settings, tmp_path, capsys):
    train([*settings, *ALONE, "--steps", "1", "--out", str(tmp_path)])
    begun = checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "last.pt", begun | {"precision": "bf16"})  # as from a GPU
    train(["--resume", str(tmp_path), "--steps", "2", "--device", "cpu"])
    assert "precision: stays bf16, in which the run began (auto is fp32 here)" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "last.pt")["precision"] == "bf16"


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ----------------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_the_checkpoint_before_the_last(settings, tmp_path):
    train([*settings, "--eval-every", "2", "--steps", "6", "--out", str(tmp_path / "run")])
    straight = state(tmp_path / "run/last.pt")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert checkpoint.load(tmp_path / "run/previous.pt")["step"] == 4
    (tmp_path / "run/last.pt").write_bytes(b"damaged")
    train(["--resume", str(tmp_path / "run/previous.pt")])
    assert equal(state(tmp_path / "run/last.pt"), straight)
    assert read_metrics(tmp_path / "run/metrics.jsonl") == rows
    # What was damaged has not become the checkpoint before.
    assert checkpoint.load(tmp_path / "run/previous.pt")["step"] == 4
    assert checkpoint.load(tmp_path / "run/best.pt")["best"] == straight["best"]


def test_a_lost_best_checkpoint_is_said_and_sought_anew(settings, tmp_path, capsys):
    train([*settings, *ALONE, "--eval-every", "1", "--steps", "2", "--out", str(tmp_path)])
    kept = checkpoint.load(tmp_path / "last.pt")
    checkpoint.save(tmp_path / "last.pt", kept | {"best": kept["best"] | {"step": 1}})
    (tmp_path / "best.pt").unlink()
    result = train(["--resume", str(tmp_path), "--steps", "3"])
    assert "best.pt is lost" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "best.pt")["best"] == result["best"]


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


# ----------------------------------------------------------------------------------------------------------------------
# Two at a time, and a run that is left alone
# ----------------------------------------------------------------------------------------------------------------------


def command(settings, out, *more):
    return [sys.executable, "-m", "simfast", "train", *settings, *ALONE, "--out", str(out), *more]


def test_a_run_is_alone_in_its_folder_and_sighup_saves_it(settings, tmp_path):
    out, nowhere = tmp_path / "run", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(settings, out, "--eval-every", "1", "--steps", "20"), **nowhere)
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


def test_pictures_of_one_value_in_the_labels_are_told(settings, data, tmp_path, monkeypatch, capsys):
    for file in (data / "source/train/labels").glob("*.png"):
        Image.new("L", (64, 64), 255).save(file)
    monkeypatch.setattr("simfast.training.opening.first_look", lambda *_: None)
    train([*on(settings, data), *ALONE, "--steps", "2", "--out", str(tmp_path / "run")])
    assert "seg is 0: in steps 1 to 1 no pixel of the labels is of a class" in capsys.readouterr().out


def test_a_loss_far_beyond_a_guess_is_told(settings, data, tmp_path, monkeypatch, capsys):
    before = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *given: {"seg": 500 + before(self, *given)["seg"]})
    train([*on(settings, data), *ALONE, "--steps", "1", "--out", str(tmp_path / "run")])
    told = r"seg is 50\d, where guessing gives 2.9: the network is not learning; a new run may try a lower --lr"
    assert re.search(told, capsys.readouterr().out)
