"""The rows of the paper's tables: what is run for them, in which order, what is kept, and the table that comes out."""

import dataclasses
import json
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from running import save_run

from simfast.analysis import ablate
from simfast.analysis.ablation_table import summarise
from simfast.analysis.rows import Run, plan
from simfast.config import Config
from simfast.config.classes import built_in
from simfast.config.presets import PRESETS
from simfast.data import open_dataset
from simfast.data.parts import arguments_of
from simfast.data.prepare import prepare
from simfast.report.panels import save_panel


def names(runs):
    return [run.config.out.name for run in runs]


def test_runs_are_done_once_and_those_begun_are_continued(shared, trainer, tmp_path):
    runs = plan(["aa", "aa+sim"], [0], shared)
    assert ablate.run_all(runs[:1], trainer) == []
    (tmp_path / "aa+sim-seed0").mkdir()
    save_run(tmp_path / "aa+sim-seed0" / "last.pt", runs[1].config)
    assert ablate.run_all(runs, trainer) == []
    assert (tmp_path / "calls.txt").read_text().split() == ["aa-seed0", "new", "aa+sim-seed0", "resumed"]
    settings = yaml.safe_load((tmp_path / "aa-seed0" / "settings.yaml").read_text())
    assert Config.from_dict(settings, "itself", Config(out=tmp_path / "aa-seed0")) == runs[0].config


def test_in_a_thread_of_another_program_the_runs_are_done_without_signals(shared, trainer):
    runs, failed = plan(["aa"], [0], shared), []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=lambda: failed.append(ablate.run_all(runs, trainer)))
    thread.start()
    thread.join()
    assert (failed, runs[0].done) == ([[]], True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_several_runs_at_a_time_wait_for_what_they_build_on(shared, trainer, tmp_path):
    meeting = tmp_path / "meeting.py"
    # Each run waits for another one to be in progress or over; the second stage begins when the first has a result.
    meeting.write_text(
        "import time\n"
        + Path(trainer[1]).read_text()
        + "(out / 'begun').touch()\n"
        + "while len(list(out.parent.glob('*/begun'))) < 2:\n    time.sleep(0.01)\n"
        + "if settings['stage'] == 2:\n    assert pathlib.Path(settings['stage1'], 'result.json').exists()\n"
    )
    runs = plan(["aa+sim+ssl", "aa"], [0], shared)
    assert ablate.run_all(runs, [sys.executable, str(meeting)], jobs=2) == []
    calls = (tmp_path / "calls.txt").read_text().split()[::2]
    assert sorted(calls[:2]) == ["aa+sim-seed0", "aa-seed0"]
    assert calls[2] == "aa+sim+ssl-seed0"
    with pytest.raises(ValueError, match="jobs: must be at least 1, got 0"):
        ablate.run_all(runs, trainer, jobs=0)


def test_a_failed_run_does_not_stop_the_others(shared, trainer, tmp_path):
    (tmp_path / "fail").write_text("aa")
    runs = plan(["aa", "source-only"], [0], shared)
    assert names(ablate.run_all(runs, trainer)) == ["aa-seed0"]
    assert (tmp_path / "source-only-seed0" / "result.json").exists()


def test_a_run_that_did_not_even_begin_may_begin_with_other_settings(shared, tmp_path):
    bad = [sys.executable, "-c", "raise SystemExit('no such data')"]
    for jobs, left in ((1, []), (2, ["aa-seed0", "aa-seed0/console.txt"])):
        for lr in (0.1, 0.2):
            runs = plan(["aa"], [0], dataclasses.replace(shared, lr=lr))
            assert names(ablate.run_all(runs, bad, jobs)) == ["aa-seed0"]
        found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "ablation" not in path.name)
        assert found == left


def test_stage_2_is_not_tried_without_its_stage_1_and_that_is_said(shared, trainer, tmp_path, caplog):
    (tmp_path / "fail").write_text("aa+sim")
    failed = ablate.run_all(plan(["aa+sim+ssl"], [0], shared), trainer)
    assert names(failed) == ["aa+sim-seed0", "aa+sim+ssl-seed0"]
    assert caplog.text.count("aa+sim+ssl, seed 0: not tried, as it builds on aa+sim, seed 0, which failed") == 1
    assert (tmp_path / "calls.txt").read_text().split() == ["aa+sim-seed0", "new"]


@pytest.mark.parametrize("content", ["", "\0" * 100, '{"seed": 0, "last": {"step'])
def test_a_result_that_a_power_loss_left_empty_is_made_again(content, shared, trainer, tmp_path, caplog):
    runs = plan(["aa"], [0], shared)
    ablate.run_all(runs, trainer)
    (runs[0].config.out / "last.pt").touch()
    runs[0].result.write_text(content)
    assert ablate.run_all(runs, trainer) == []
    assert (tmp_path / "calls.txt").read_text().split()[2:] == ["aa-seed0", "resumed"]
    assert runs[0].done
    assert f"{runs[0].result}: is empty or cut short" in caplog.text


@pytest.mark.parametrize(
    ("content", "came"),
    [
        ("[1]", "a list"),
        ('{"seed": 0, "last": 3, "best": {"miou": 1}}', "no scores in 'last'"),
        ('{"last": {"miou": "x"}, "best": {"miou": 1}}', "'x' for 'miou' in 'last'"),
        ('{"last": {"miou": 1}, "best": {"miou": 1}, "report": [1]}', "no scores in 'report'"),
    ],
)
def test_a_result_of_another_kind_is_named_with_the_remedy(content, came, shared, trainer):
    runs = plan(["aa"], [0], shared)
    ablate.run_all(runs, trainer)
    runs[0].result.write_text(content)
    rule = f"must be the result of a run, got {re.escape(came)}; remove it, and resume its run to write it"
    with pytest.raises(ValueError, match=rf"result\.json: {rule}"):
        ablate.run_all(runs, trainer)


def test_the_table_has_means_spreads_and_the_papers_figures(shared, trainer, tmp_path):
    runs = plan(["aa+it+sim", "aa+it+sim,lambda_ci=0.1"], [0, 2], shared)
    ablate.run_all(runs, trainer)
    first, second = json.loads((tmp_path / "ablation.json").read_text())
    assert (first["last"], first["best"]) == (pytest.approx(2.0), pytest.approx(12.0))  # means of 1 and 3, 11 and 13
    assert first["last_spread"] == pytest.approx(2**0.5)
    assert (first["paper"], second["paper"], second["last"]) == (46.2, 43.4, pytest.approx(11.0))
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("aa+it+sim", "aa+it-fda+sim", "paper", "2", "2.0 ± 1.4", "12.0 ± 1.4", "-", "46.2")
    ]
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["road", "1.0", "5.5"]
    assert first["environments"] == [{"device": "abacus"}] * 2
    assert (tmp_path / "curves.png").exists()
    other_classes = plan(["aa+it+sim"], [0, 2], dataclasses.replace(shared, classes=built_in("camvid")))
    assert summarise(other_classes)[0]["paper"] is None


def test_the_gap_closed_is_between_source_only_and_target_only(shared, trainer):
    rows = ["source-only,lambda_ci=0.2", "source-only", "target-only", "aa"]
    runs = plan(rows, [0], shared)
    settings = dict(zip(rows, (0.2, 0.2, 0.6, 0.3), strict=True))
    runs = [Run(run.row, dataclasses.replace(run.config, lambda_ci=settings[run.row])) for run in runs]
    ablate.run_all(runs, trainer)
    assert [row["gap_closed"] for row in summarise(runs)] == pytest.approx([0, 0, 100, 25])


def test_nothing_is_tried_without_its_warm_up(shared, trainer, tmp_path):
    (tmp_path / "fail").write_text("source-only")
    failed = ablate.run_all(plan(["aa", "target-only"], [0], shared, warm_up=1), trainer)
    assert names(failed) == ["warm-up-seed0", "aa-seed0"]
    assert (tmp_path / "target-only-seed0" / "result.json").exists()


def test_data_that_a_later_row_lacks_are_missed_before_anything_is_trained(folders, shared, tmp_path):
    data = {
        "source": ("folder",),
        "source_root": (folders / "source",),
        "target": "folder",
        "target_root": folders / "target",
    }
    shared = dataclasses.replace(shared, **data, source_size=(64, 64), target_size=(64, 64), cache=tmp_path / "cache")
    for part in arguments_of(shared).values():
        prepare(open_dataset(**part), shared.cache, workers=0)
    ablate.check_data(plan(["source-only", "aa+sim+ssl"], [0], shared))
    with pytest.raises(ValueError, match=r"rows: target-only: .* run `simfast prepare` with the same settings"):
        ablate.check_data(plan(["source-only", "target-only"], [0], shared))


def test_labels_without_a_class_are_missed_before_anything_is_trained(folders, shared, tmp_path):
    shutil.copytree(folders / "source", tmp_path / "source")
    for path in (tmp_path / "source/train/labels").iterdir():
        Image.new("L", (64, 64), 255).save(path)
    data = {"source": ("folder",), "source_root": (tmp_path / "source",), "target": "folder"}
    shared = dataclasses.replace(shared, **data, target_root=folders / "target")
    ablate.check_data(plan(["target-only"], [0], shared))
    with pytest.raises(ValueError, match=r"rows: source-only: .*a label map must have a pixel of some class"):
        ablate.check_data(plan(["target-only", "source-only"], [0], shared))


def test_a_row_that_would_train_on_the_labels_that_it_scores_on_is_told_before_unless_it_has_begun(tmp_path):
    shared = dataclasses.replace(PRESETS["streets"], out=tmp_path, eval_split="train")
    runs = plan(["source-only", "target-only"], [0], shared)
    with pytest.raises(ValueError, match=r"rows: target-only: .* got 120 of 120 in the target, too"):
        ablate.check_data(runs)
    runs[-1].config.out.mkdir()
    (runs[-1].config.out / "last.pt").touch()
    ablate.check_data(runs)


def test_an_ablation_begins_with_as_many_bad_files_as_its_runs_may_skip(folders, shared, tmp_path):
    for domain in ("source", "target"):
        shutil.copytree(folders / domain, tmp_path / domain)
    data = {"source": ("folder",), "source_root": (tmp_path / "source",), "target": "folder"}
    shared = dataclasses.replace(shared, **data, target_root=tmp_path / "target")
    skipping = dataclasses.replace(shared, skip_bad_files=1)
    (tmp_path / "source/train/images/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"rows: aa: .*source/train/images/0\.png.*; --skip-bad-files N goes on"):
        ablate.check_data(plan(["aa"], [0], shared))
    ablate.check_data(plan(["aa"], [0], skipping))
    for i in range(2):
        (tmp_path / f"target/train/images/{i}.png").write_bytes(b"")
    ablate.check_data(plan(["source-only"], [0], skipping))  # which never reads them
    with pytest.raises(ValueError, match=r"rows: aa: .*target/train/images/"):
        ablate.check_data(plan(["aa"], [0], skipping))
    shutil.copytree(folders / "target", tmp_path / "target", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"rows: aa,skip_bad_files=0: .*source/train/images/0\.png"):
        ablate.check_data(plan(["aa", "aa,skip_bad_files=0"], [0], skipping))
    (tmp_path / "target/val/images/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"rows: aa: .*target/val/images/0\.png"):
        ablate.check_data(plan(["aa"], [0], skipping))


def test_rows_without_labels_to_score_on_have_signals_in_the_table(shared, tmp_path):
    runs = plan(["aa", "aa+sim"], [0, 1], dataclasses.replace(shared, eval_split="none"))
    for run in runs[:2]:
        last = {
            "step": 1,
            "miou": None,
            "confidence": 0.5 + run.config.seed / 10,
            "mirror": 0.9,
            "share_distance": 0.25,
        }
        result = {"seed": run.config.seed, "last": last, "best": last, "environment": {"device": "abacus"}}
        run.config.out.mkdir(parents=True)
        run.result.write_text(json.dumps(result))
        (run.config.out / "metrics.jsonl").write_text(json.dumps({"kind": "eval"} | last) + "\n")
        image = torch.full((3, 4, 4), 9, dtype=torch.uint8)
        save_panel(run.panel, [(image, torch.zeros(4, 4, dtype=torch.uint8))], run.config.classes)
    ablate.write_tables(runs, tmp_path)
    cells = [
        [cell.strip() for cell in line.split("|")[5:-1]] for line in (tmp_path / "ablation.md").read_text().splitlines()
    ]
    assert cells[0] == [
        *("last mIoU, %", "best mIoU, %", "mean confidence, %", "the same when mirrored, %"),
        *("class shares' distance, %", "gap closed, %", "paper"),
    ]
    assert cells[2][:5] == ["-", "-", "55.0 ± 7.1", "90.0 ± 0.0", "25.0 ± 0.0"]
    assert cells[3][:5] == ["-"] * 5
    assert (tmp_path / "curves.png").exists()
    assert (tmp_path / "panel.png").exists()
