"""The trainer from its command line: what a run leaves, what a resumed run continues, what stops it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from kept_runs import assert_same
from PIL import Image
from running import train

from simfast.models import checkpoint, deeplab_v2
from simfast.models.weights import load_weights
from simfast.report.metrics import read_metrics
from simfast.runtime.console import StopSignals


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


def arguments(settings, out, *more):
    return [*settings, "--out", str(out), *map(str, more)]


def started(settings, out, *more, **pipes):
    """A run of its own program, as long as 20 steps."""
    code = "from simfast.cli import main\nfrom simfast.runtime.pipe import quiet_pipe\nwith quiet_pipe(): main()"
    command = [sys.executable, "-c", code, "train", *arguments(settings, out, "--steps", 20, "--eval-every", 50, *more)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, **pipes)


def test_two_steps_then_two_more_equal_four_straight(settings, tmp_path):
    straight = train(arguments(settings, tmp_path / "straight", "--steps", 4))
    train(arguments(settings, tmp_path / "parts", "--steps", 2))
    resumed = train(["--resume", str(tmp_path / "parts"), "--steps", "4"])
    first, second = (checkpoint.load(tmp_path / name / "last.pt") for name in ("straight", "parts"))
    for state in (first, second):
        del state["config"], state["seconds"]
    assert_same(first, second)
    assert first["step"] == 4
    assert straight["last"] == resumed["last"]
    assert int(first["matching"]["bank.written"].sum()) > 0


def test_a_part_that_nothing_was_chosen_on_is_scored_at_the_end(settings, tmp_path, capsys):
    arguments_ = arguments(settings, tmp_path, "--steps", 3, "--report-split", "train", "--method", "source-only")
    result = train(arguments_)
    assert result["report"]["last"]["step"] == 3
    assert result["report"]["best"]["step"] == result["best"]["step"]
    assert result["report"]["last"]["miou"] != result["last"]["miou"]
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["last"] == result["last"]
    assert "report" not in state


def test_the_seconds_of_a_run_are_those_of_all_its_parts(settings, tmp_path):
    arguments_ = arguments(settings, tmp_path, "--method", "source-only", "--eval-every", 1)
    first = train([*arguments_, "--steps", "1"])
    state = checkpoint.load(tmp_path / "last.pt")
    assert 0 < state["seconds"] <= first["seconds"] + 0.1
    checkpoint.save(tmp_path / "last.pt", state | {"seconds": 1000.0})
    second = train(["--resume", str(tmp_path), "--steps", "2"])
    assert 1000 < second["seconds"] < 1000 + 60
    state = checkpoint.load(tmp_path / "last.pt")
    assert 1000 < state.pop("seconds") <= second["seconds"]
    del state["losses"]
    checkpoint.save(tmp_path / "last.pt", state)  # as an older one
    assert train(["--resume", str(tmp_path), "--steps", "3"])["seconds"] < 60
    assert ", steps 3 to 3" in (tmp_path / "log.txt").read_text()
    train(["--resume", str(tmp_path)])
    assert ", all 3 steps are done" in (tmp_path / "log.txt").read_text()


def test_a_run_does_not_end_before_where_it_is(settings, tmp_path):
    train(arguments(settings, tmp_path, "--steps", 2, "--method", "source-only"))
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(SystemExit, match=r"steps: must be at least 2, where .*last\.pt is, got 1"):
        train(["--resume", str(tmp_path), "--steps", "1"])
    assert (tmp_path / "result.json").read_text() == before


def with_transfer(name, settings, out):
    """The result of one step with a transfer, and its loss."""
    result = train(arguments(settings, out, "--steps", 1, "--method", "source-only", "--transfer", name))
    return result, read_metrics(out / "metrics.jsonl")[0]["seg"]


@pytest.fixture(scope="module")
def plain(settings, tmp_path_factory):
    """The same of a step with none."""
    return with_transfer("none", settings, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("transfer", ["fda", "lab"])
def test_a_transfer_is_named_in_the_result_and_changes_the_training(transfer, plain, settings, tmp_path):
    transferred = with_transfer(transfer, settings, tmp_path)
    assert transferred[0]["row"] == f"source-only+it-{transfer}"
    assert plain[0]["transfer"] == "none"
    assert plain[1] != transferred[1]


def test_a_run_leaves_what_the_readme_promises(settings, tmp_path, capsys):
    out = tmp_path / "run"
    result = train(arguments(settings, out, "--steps", 3))
    names = {path.name for path in out.iterdir()}
    expected = (
        "best.pt config.yaml curve.png last.pt previous.pt log.txt metrics.jsonl panel-000002.png panel-000003.png"
    )
    assert names == {*expected.split(), "result.json", "tensorboard"}
    assert json.loads((out / "result.json").read_text()) == result
    rows = read_metrics(out / "metrics.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("train", 1),
        ("train", 2),
        ("eval", 2),
        ("train", 3),
        ("eval", 3),
    ]
    assert {"seg", "adv", "d", "stuff", "instance", "lr"} < rows[0].keys()
    assert result["last"]["step"] == 3
    assert Image.open(out / "panel-000003.png").size == (3 * 64, 64)
    table = capsys.readouterr().out
    assert "building" in table
    assert "mIoU" in table
    with pytest.raises(SystemExit, match="holds a run already"):
        train(arguments(settings, out, "--steps", 3))


@pytest.mark.parametrize("method", ["source-only", "aa", "target-only"])
def test_each_method_trains_what_it_names(method, settings, tmp_path):
    train(arguments(settings, tmp_path, "--steps", 1, "--method", method))
    state = checkpoint.load(tmp_path / "last.pt")
    losses = read_metrics(tmp_path / "metrics.jsonl")[0].keys() - {"kind", "step", "lr"}
    assert losses == ({"seg", "adv", "d"} if method == "aa" else {"seg"})
    assert ("discriminator" in state) == (method == "aa")
    assert "matching" not in state


def test_a_start_from_random_weights_is_said_where_the_preset_is_for_pretrained_ones(settings, tmp_path, capsys):
    train(arguments(settings, tmp_path / "first", "--steps", 1, "--method", "source-only", "--convention", "bgr"))
    assert "starts from random values" in capsys.readouterr().out
    second = tmp_path / "second"
    weights = tmp_path / "first" / "last.pt"
    train(arguments(settings, second, "--steps", 1, "--method", "source-only", "--weights", weights))
    assert "random values" not in capsys.readouterr().out


def test_a_checkpoint_is_a_weights_file(settings, tmp_path):
    train(arguments(settings, tmp_path / "first", "--steps", 1, "--method", "source-only", "--convention", "bgr"))
    second = tmp_path / "second"
    train(arguments(settings, second, "--steps", 1, "--weights", tmp_path / "first" / "best.pt"))
    assert checkpoint.load(second / "last.pt")["convention"] == "bgr"
    model = deeplab_v2("resnet18", 19)
    assert load_weights(model, second / "last.pt").matched > 100
    assert torch.equal(model.conv1.weight, checkpoint.load(second / "last.pt")["model"]["conv1.weight"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_continues(number, settings, tmp_path):
    process = started(settings, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    step = checkpoint.load(tmp_path / "last.pt")["step"]
    assert 2 <= step < 20
    result = train(["--resume", str(tmp_path), "--steps", str(step + 1)])
    assert result["step"] == step + 1
    steps = [row["step"] for row in read_metrics(metrics) if row["kind"] == "train"]
    assert steps == list(range(1, step + 2))


def test_a_signal_that_arrives_twice_at_once_still_lets_the_step_end(monkeypatch):
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGINT
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_broken_checkpoint_is_named_and_a_failed_save_leaves_the_old_one(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"last\.pt: must be a whole file of torch\.save"):
        checkpoint.load(path)
    checkpoint.save(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(path, {"step": lambda: 2})
    assert checkpoint.load(path)["step"] == 1
    torch.save({"step": 2}, path)
    with pytest.raises(ValueError, match="must have format 'simfast', got None"):
        checkpoint.load(path)


def test_a_run_whose_reader_goes_away_saves_and_ends_without_a_word(settings, tmp_path):
    process = started(settings, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("step 1/20: "):
        assert process.poll() is None, process.stderr.read()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 128 + signal.SIGPIPE)
    assert 1 <= checkpoint.load(tmp_path / "last.pt")["step"] < 20
    assert "stopped by SIGPIPE after step" in (tmp_path / "log.txt").read_text()


def test_without_a_terminal_there_is_a_line_each_log_every_and_no_bar(settings, tmp_path, capfd):
    train(arguments(settings, tmp_path, "--steps", 5, "--eval-every", 2, "--log-every", 2))
    printed, errors = capfd.readouterr()
    assert (errors, "\r" in printed) == ("", False)
    assert not [line for line in printed.splitlines() if line.startswith(("stage:", "lr:"))]  # no settings file
    loss = r"[\d.e+-]+"
    losses = ", ".join(f"{name} {loss}" for name in ("seg", "adv", "stuff", "instance", "d"))
    line = rf"step (\d)/5: {losses}; {loss} images/s, \d\d:\d\d left, [\d.]+ GB"
    assert re.findall(rf"^{line}$", printed, re.M) == ["2", "4", "5"]
    logged = (tmp_path / "log.txt").read_text()
    assert re.findall(rf"^\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d {line}$", logged, re.M) == ["2", "4", "5"]


def test_on_a_terminal_of_80_columns_the_bar_keeps_its_losses_and_never_wraps(settings, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = started(settings, tmp_path, "--steps", 4, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # what Linux says at the end
        while more := os.read(ours, 65536):
            written += more
    os.close(ours)
    assert process.wait() == 0
    frames = [frame for frame in re.split(r"[\r\n]|\x1b\[A", written.decode()) if re.search(r" \d/4 |evaluate:", frame)]
    assert 70 < max(map(len, frames)) <= 80
    assert re.fullmatch(r"\S+ +4/4 00:00 seg \S+ adv \S+ stuff \S+ inst \S+ d \S+ mIoU \S+", frames[-1])
    assert any(frame.startswith("evaluate:") for frame in frames)
    assert b"images/s" not in written  # what the bar says
    assert "images/s" in (tmp_path / "log.txt").read_text()


def test_missing_data_is_named(settings, tmp_path):
    with pytest.raises(SystemExit, match="nowhere"):
        train(arguments(settings, tmp_path, "--steps", 1, "--source-root", tmp_path / "nowhere"))
