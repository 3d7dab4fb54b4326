"""Which runs the rows of a table need, with which settings, in which folders."""

import dataclasses
import re
from pathlib import Path

import pytest

from simfast.analysis.ablation_table import PUBLISHED
from simfast.analysis.rows import plan
from simfast.config.presets import PRESETS


@pytest.fixture
def shared(tmp_path):
    """Settings that all rows share, and their folder."""
    return dataclasses.replace(PRESETS["gta5"], out=tmp_path)


def names(runs):
    return [run.config.out.name for run in runs]


def test_the_module_rows_are_those_of_table_2(shared):
    runs = plan(["modules"], [0], shared)
    rows = {run.row: run.config for run in runs}
    assert [run.row for run in runs] == ["source-only", "aa", "aa+it", "aa+it+sim", "aa+it+sim+ssl", "target-only"]
    assert [config.row for config in rows.values()] == [
        *("source-only", "aa", "aa+it-fda", "aa+it-fda+sim", "aa+it-fda+sim+ssl", "target-only")
    ]
    assert rows["aa+it+sim+ssl"].stage1 == rows["aa+it+sim"].out
    assert PUBLISHED["gta5", "resnet101"].keys() >= rows.keys()


def test_it_is_the_users_transfer_where_one_is_given(shared):
    images = dataclasses.replace(shared, source_images=(Path("transferred"),))
    lab = dataclasses.replace(shared, transfer="lab")
    assert [run.config.row for run in plan(["aa", "aa+it"], [0], images)] == ["aa", "aa+it-images"]
    assert [run.config.row for run in plan(["aa", "aa+it"], [0], lab)] == ["aa", "aa+it-lab"]


def test_a_rows_own_transfer_wins(shared):
    runs = plan(["aa+it,transfer=lab", "aa+it+sim+ssl,transfer=lab"], [0], shared)
    assert [run.config.row for run in runs] == ["aa+it-lab", "aa+it-lab+sim", "aa+it-lab+sim+ssl"]


def test_a_stage_2_row_brings_its_stage_1_once(shared):
    runs = plan(["aa+sim+ssl", "aa+sim"], [1, 2], shared)
    assert names(runs) == [f"aa+sim{ssl}-seed{seed}" for seed in (1, 2) for ssl in ("", "+ssl")]


def test_a_row_carries_settings_of_its_own(shared):
    (run,) = plan(["aa+sim,lambda-ci=0.1,stuff_rows=10"], [0], shared)
    assert (run.config.lambda_ci, run.config.stuff_rows, run.config.method) == (0.1, 10, "aa+sim")
    assert [run.config.lambda_ci for run in plan(["lambda_ci"], [0], shared)] == [0.1, 0.05, 0.01, 0.005, 0.001]
    assert [run.config.stuff_rows for run in plan(["w"], [0], shared)] == [10, 50, 200, 800, 1600]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("aa+simm", r"rows: 'aa\+simm' must be one of source-only, .*, modules, lambda_ci, w"),
        ("aa,lamda_ci=1", "rows: aa,lamda_ci=1: unknown key 'lamda_ci'; the closest one is 'lambda_ci'"),
        ("aa,lr=[", r"rows: aa,lr=\[: while parsing"),
        ("aa,stuff_rows=010", "rows: aa,stuff_rows=010: 010, which YAML takes for 8"),
        ("aa,lr=fast", "rows: aa,lr=fast: lr: .* got 'fast'"),
    ],
)
def test_a_bad_row_is_named(row, message, shared):
    with pytest.raises(ValueError, match=message):
        plan([row], [0], shared)


@pytest.mark.parametrize(
    ("row", "warm_up", "message"),
    [
        ("aa,seed=5", 0, "seed must not be set by a row, got 5; --seeds decides it"),
        ("aa,run={seed: 5}", 0, "seed must not be set by a row, got 5; --seeds decides it"),
        ("aa,out=there", 0, "out must not be set by a row, got 'there'; --out decides it"),
        ("aa,method=aa+sim", 0, r"method must not be set by a row, got 'aa\+sim'; its name decides it"),
        ("aa+sim,stage=2", 0, "stage must not be set by a row, got 2; its name decides it"),
        ("aa+sim+ssl,stage1=there", 0, "stage1 must not be set by a row, got 'there'; its name decides it"),
        ("aa,recipe=released", 0, "recipe must not be set by a row, got 'released'; --recipe decides it for all rows"),
        ("aa,transfer=lab", 0, r"transfer must not be set by a row, got 'lab'; rows with \+it have one"),
        ("aa,weights=there.pth", 1, "weights must not be set by a row, got 'there.pth'; .* --warm-up's network"),
        ("aa+sim+ssl,ema=true", 1, "ema must not be set by a row, got True; .* --warm-up's network"),
        ("aa,lr=0.1,lr=0.2", 0, "lr must be given once, got 0.1 and 0.2"),
        (
            "aa+it,transfer=none",
            0,
            r"transfer must be fda or lab in a row with \+it, or source_images given, got 'none'",
        ),
    ],
)
def test_a_row_is_what_its_name_says(row, warm_up, message, shared):
    with pytest.raises(ValueError, match=f"rows: {re.escape(row)}: {message}"):
        plan([row], [0], shared, warm_up)


def test_a_table_of_nothing_is_refused(shared):
    for name, rows, seeds in (("rows", [], [0]), ("seeds", ["aa"], [])):
        with pytest.raises(ValueError, match=f"{name}: must name at least one, got none"):
            plan(rows, seeds, shared)


@pytest.mark.parametrize(
    ("row", "folder"),
    [
        ("source-only,weights=/abs/x.pt", r"source-only-weights=_abs_x\.pt-[0-9a-f]{8}"),
        ("aa,weights=../../x.pt", r"aa-weights=\.\._\.\._x\.pt-[0-9a-f]{8}"),
        ("aa,weights=" + 50 * "long/", r"aa-weights=(long_)+long-[0-9a-f]{8}"),
        ("aa+sim,lambda-ci=0.1,stuff_rows=10", r"aa\+sim-lambda-ci=0\.1-stuff_rows=10"),
    ],
)
def test_a_row_is_one_folder_whatever_its_settings_hold(row, folder, shared):
    (run,) = plan([row], [3], shared)
    assert run.config.out.parent == shared.out
    assert re.fullmatch(folder + "-seed3", run.config.out.name)
    assert len(run.config.out.name) < 220


def test_rows_of_different_paths_have_different_folders(shared):
    assert len({*names(plan(["aa,weights=a/b.pt", "aa,weights=a_b.pt", "aa,weights=a\\b.pt"], [0], shared))}) == 3


def test_a_warm_up_is_trained_once_a_seed_and_all_rows_but_target_only_start_from_it(shared):
    shared = dataclasses.replace(shared, steps=30, schedule_steps=40, weights=Path("imagenet.pth"), ema=True)
    runs = plan(["source-only", "aa+sim+ssl", "target-only"], [0], shared, warm_up=10)
    assert names(runs) == [f"{row}-seed0" for row in ("warm-up", "source-only", "aa+sim", "aa+sim+ssl", "target-only")]
    warm_up, *rest, oracle = [run.config for run in runs]
    begun = shared.out / "warm-up-seed0" / "last.pt"
    assert (warm_up.method, warm_up.steps, warm_up.schedule_steps) == ("source-only", 10, 50)
    assert [(config.weights, config.ema, config.steps) for config in rest] == [(begun, False, 30)] * 3
    assert (oracle.weights, oracle.ema, oracle.steps, oracle.schedule_steps) == (shared.weights, True, 40, 50)
    (oracle,) = plan(["target-only,schedule_steps=60"], [0], shared, warm_up=10)
    assert oracle.config.schedule_steps == 70
