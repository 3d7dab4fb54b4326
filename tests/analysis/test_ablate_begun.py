"""Runs that are there when an ablation begins: what may be otherwise now, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from running import save_run, settings_of

from simfast.analysis import ablate
from simfast.analysis.rows import plan
from simfast.config.classes import built_in


def begin(run):
    """The checkpoint of a run that was interrupted."""
    run.config.out.mkdir(exist_ok=True)
    (run.config.out / "settings.yaml").write_text(yaml.safe_dump(run.config.portable()))
    save_run(run.config.out / "last.pt", run.config)
    return run.config.out / "last.pt"


def test_a_run_that_was_interrupted_goes_on_with_the_settings_given_now(shared, trainer, tmp_path):
    shared = dataclasses.replace(shared, source=("gta5", "folder"), source_root=(None, Path("here/data")))
    last = begin(*plan(["aa+it"], [0], shared))
    free = {"workers": 1, "eval_every": 3, "log_every": 2, "panel_images": 0, "cache": tmp_path / "cache"}
    movable = {
        "source_root": (Path("there/gta5"), Path("there/-a -> b")),
        "target_root": Path("there"),
        "device": "cpu",
    }
    movable |= {"skip_bad_files": 1, "report_split": "train"}
    (run,) = plan(["aa+it"], [0], dataclasses.replace(shared, **free, **movable))
    assert ablate.run_all([run], trainer) == []
    arguments = json.loads((run.config.out / "arguments.json").read_text())
    assert settings_of(arguments) == dataclasses.replace(run.config, resume=last)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"eval_split": "none"}, "eval_split must stay 'val' as the run was begun, got 'none'"),
        ({"weights": Path("there/other.pth")}, "weights must stay 'here/imagenet.pth' as .*, got 'there/other.pth'"),
        ({"steps": 100}, "steps must stay 200000 as the run was begun, got 100"),
    ],
)
def test_a_run_that_was_interrupted_goes_on_as_what_it_was(now, message, shared, trainer):
    shared = dataclasses.replace(shared, weights=Path("here/imagenet.pth"))
    begin(*plan(["aa"], [0], shared))
    with pytest.raises(ValueError, match=message):
        ablate.run_all(plan(["aa"], [0], dataclasses.replace(shared, **now)), trainer)


def test_beside_a_run_that_is_done_others_may_be_computed_elsewhere_and_on_no_other_data(shared, trainer):
    ablate.run_all(plan(["aa"], [0], shared), trainer)
    elsewhere = dataclasses.replace(shared, device="cpu", step_mode="eager", skip_bad_files=2)
    assert ablate.run_all(plan(["aa"], [0], elsewhere), trainer) == []
    with pytest.raises(ValueError, match="target_split must stay 'train' as the run was begun, got 'val'"):
        ablate.run_all(plan(["aa"], [0], dataclasses.replace(shared, target_split="val")), trainer)


def test_another_run_in_the_folder_of_a_row_is_not_taken_for_it(shared, trainer):
    (other,), (run,) = plan(["source-only"], [3], shared), plan(["aa"], [0], shared)
    run.config.out.mkdir()
    save_run(run.config.out / "last.pt", other.config)
    for _ in ("begun", "done"):
        with pytest.raises(ValueError, match=r"last\.pt: method must stay 'source-only' .*, got 'aa'"):
            ablate.run_all([run], trainer)
        run.result.write_text('{"last": {"miou": 1}, "best": {"miou": 1}}')
    (run.config.out / "last.pt").unlink()
    with pytest.raises(ValueError, match=r"settings\.yaml: must have the settings .*, got no file; copy the run's"):
        ablate.run_all([run], trainer)


@pytest.mark.parametrize("sources", [("gta5",), ("gta5", "folder")])
def test_data_of_a_run_that_is_done_may_have_moved(shared, trainer, sources):
    shared = dataclasses.replace(shared, source=sources, source_share=(1,))
    roots = [tuple(Path(place) / name for name in ("a", "b")[: len(sources)]) for place in ("here", "there")]
    before, now = (dataclasses.replace(shared, source_root=own) for own in roots)
    ablate.run_all(plan(["aa"], [0], before), trainer)
    assert ablate.run_all(plan(["aa"], [0], now), trainer) == []
    other = dataclasses.replace(shared, source_root=tuple(root.with_name("c") for root in roots[1]))
    with pytest.raises(ValueError, match="source_root must stay"):
        ablate.run_all(plan(["aa"], [0], other), trainer)


def test_other_settings_in_the_same_folder_are_refused(shared, trainer):
    ablate.run_all(plan(["aa"], [0], shared), trainer)
    for done in (True, False):
        if not done:
            (shared.out / "aa-seed0" / "result.json").unlink()
        with pytest.raises(ValueError, match=r"settings\.yaml: lr must stay 0.00025 as the run was begun, got 0.1"):
            ablate.run_all(plan(["aa"], [0], dataclasses.replace(shared, lr=0.1)), trainer)


def test_settings_that_a_power_loss_left_empty_are_the_checkpoints(shared, trainer, tmp_path):
    runs = plan(["aa"], [0], shared)
    ablate.run_all(runs, trainer)
    (tmp_path / "aa-seed0" / "settings.yaml").write_text("")
    with pytest.raises(ValueError, match=r"settings\.yaml: must have the settings .*, got an empty file; copy the"):
        ablate.run_all(runs, trainer)
    save_run(tmp_path / "aa-seed0" / "last.pt", runs[0].config)
    other = plan(["aa"], [0], dataclasses.replace(shared, lr=0.1))
    with pytest.raises(ValueError, match=r"lr must stay 0\.00025"):
        ablate.run_all(other, trainer)
    assert ablate.run_all(runs, trainer) == []
    for name in ("last.pt", "result.json"):
        (tmp_path / "aa-seed0" / name).unlink()
    assert ablate.run_all(other, trainer) == []  # it had not begun


def test_other_classes_in_the_same_folder_are_refused_by_name(shared, trainer):
    ablate.run_all(plan(["aa"], [0], shared), trainer)
    other = dataclasses.replace(shared, classes=built_in("camvid"), score_classes="auto")
    with pytest.raises(ValueError, match=r"classes must stay 'cityscapes' as the run was begun, got 'camvid"):
        ablate.run_all(plan(["aa"], [0], other), trainer)


def test_a_folder_of_runs_that_are_done_may_move(shared, trainer, tmp_path):
    shared = dataclasses.replace(shared, out=tmp_path / "before")
    ablate.run_all(plan(["aa+sim+ssl"], [0], shared, warm_up=1), trainer)
    shared.out.rename(tmp_path / "after")
    shared = dataclasses.replace(shared, out=tmp_path / "after")
    assert ablate.run_all(plan(["aa+sim+ssl"], [0], shared, warm_up=1), trainer) == []
    assert len((shared.out / "calls.txt").read_text().splitlines()) == 3
