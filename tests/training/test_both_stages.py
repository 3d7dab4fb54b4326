"""Both stages: as one command, one by one, and stopped between them."""

import json
import signal

import pytest
from kept_runs import assert_same, signal_at
from running import train

from simfast.inference import pseudo_labels
from simfast.models import checkpoint
from simfast.report.metrics import read_metrics
from simfast.training import run
from simfast.training.step import Trainer


def arguments(settings, out, *more):
    return [*settings, "--out", str(out), *map(str, more)]


def test_both_stages_from_one_command_equal_the_two_made_one_by_one(settings, tmp_path):
    together = train(arguments(settings, tmp_path / "all", "--stage", "all", "--steps", 2))
    train(arguments(settings, tmp_path / "first", "--steps", 2))
    second = ["--stage", "2", "--stage1", str(tmp_path / "first"), "--out", str(tmp_path / "second")]
    apart = train([*second, "--steps", "1"])  # the settings are those of stage 1
    assert apart["row"] == "aa+sim+ssl"
    apart = train(["--resume", str(tmp_path / "second"), "--steps", "2"])
    assert together["stage2"]["last"] == apart["last"]
    again = ["--stage", "2", "--stage1", str(tmp_path / "all"), "--out", str(tmp_path / "again")]
    assert train(again)["last"] == apart["last"]  # of a run of both stages, the first's network and settings
    first, second = (checkpoint.load(tmp_path / name / "last.pt") for name in ("all/stage2", "second"))
    for state in (first, second):
        del state["config"], state["seconds"], state["places"]
    assert_same(first, second)
    labels = tmp_path / "second" / "pseudo-labels"
    assert {path.name for path in labels.glob("*.png")} == {f"{i}.png" for i in range(4)}
    assert json.loads((labels / "thresholds.json").read_text())["images"] == 4
    losses = read_metrics(tmp_path / "second" / "metrics.jsonl")[0]
    assert losses["seg_target"] > 0


def test_an_interrupted_run_of_both_stages_keeps_what_is_finished(settings, tmp_path):
    out = tmp_path / "all"
    first = train(arguments(settings, out / "stage1", "--steps", 1))
    (out / "config.yaml").write_text((out / "stage1" / "config.yaml").read_text().replace("stage: 1", "stage: all"))
    before = (out / "stage1" / "last.pt").stat().st_mtime_ns
    results = train(["--resume", str(out)])
    assert results["stage1"] == first
    assert results["stage2"]["step"] == 1
    assert (out / "stage1" / "last.pt").stat().st_mtime_ns == before
    assert json.loads((out / "result.json").read_text()) == results
    assert checkpoint.resolve(out, "best.pt") == out / "stage2" / "best.pt"
    with pytest.raises(SystemExit, match="steps: a resumed run keeps its settings"):
        train(["--resume", str(out), "--steps", "2"])


ENDS = {  # of what stands before the steps of stage 2, or a place in it
    "the last step": (2, Trainer, "step"),
    "the last evaluation": (1, run, "save_panel"),
    "pseudo labels": (2, pseudo_labels, "normalise"),
    "the last pseudo label": (1, pseudo_labels, "write_thresholds"),
}


@pytest.mark.parametrize(("call", "owner", "name"), ENDS.values(), ids=ENDS)
def test_a_signal_before_stage_2_stops_there_and_is_told_how_both_go_on(
    call, owner, name, settings, tmp_path, monkeypatch, capsys
):
    given = arguments(settings, tmp_path, "--stage", "all", "--steps", 2)
    with monkeypatch.context() as patch:
        signal_at(patch, call, signal.SIGTERM, owner, name)
        with pytest.raises(SystemExit) as stopped:
            train(given)
    assert stopped.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert said.count(f"continue with --resume {tmp_path}\n") == 1
    assert "the same command" not in said
    assert (tmp_path / "stage2").exists() == (owner is pseudo_labels)
    assert not (tmp_path / "stage2/metrics.jsonl").exists()
    results = train(["--resume", str(tmp_path)])
    assert [results[stage]["last"]["step"] for stage in ("stage1", "stage2")] == [2, 2]


def test_pseudo_labels_of_stage_2_alone_go_on_by_the_same_command(settings, tmp_path, monkeypatch, capsys):
    train(arguments(settings, tmp_path / "first", "--steps", 1))
    given = ["--stage", "2", "--stage1", str(tmp_path / "first"), "--out", str(tmp_path / "second")]
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGTERM, pseudo_labels, "normalise")
        with pytest.raises(SystemExit):
            train(given)
    assert f"the same command goes on from there with --out {tmp_path / 'second'}\n" in capsys.readouterr().out
    assert train(given)["step"] == 1


@pytest.mark.parametrize("given", ["--stage1 x", "--stage1 x --stage all", "--pseudo-labels x"])
def test_what_stage_2_begins_from_is_refused_by_another_stage(given, settings, tmp_path):
    name, stage = given.split()[0].removeprefix("--").replace("-", "_"), "all" if "all" in given else "1"
    with pytest.raises(SystemExit, match=rf"{name}: must not be given with --stage {stage}, got x; give --stage 2, or"):
        train(arguments(settings, tmp_path / "run", "--steps", 1, *given.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_stages_on_streets_from_one_command(tmp_path):
    small = ["--source-size", "64", "48", "--target-size", "64", "48", "--eval-every", "3", "--log-every", "1"]
    results = train(
        [
            "--preset",
            "streets",
            "--device",
            "cpu",
            "--stage",
            "all",
            "--steps",
            "3",
            "--schedule-steps",
            "4",
            *small,
            "--out",
            str(tmp_path),
        ]
    )
    assert [results[f"stage{n}"]["row"] for n in (1, 2)] == ["aa+sim", "aa+sim+ssl"]
    thresholds = json.loads((tmp_path / "stage2" / "pseudo-labels" / "thresholds.json").read_text())
    assert thresholds["images"] == 120
    kept = {name: entry["kept_fraction"] for name, entry in thresholds["classes"].items() if entry["predicted_pixels"]}
    assert 0 < min(kept.values()) <= 1
    rows = read_metrics(tmp_path / "stage2" / "metrics.jsonl")
    assert all(row["seg_target"] > 0 for row in rows if row["kind"] == "train")
