"""Whole runs on data as people have them: several sources, photographs in sub-folders, pseudo labels beside them."""

import shutil

import pytest
import torch
from PIL import Image
from running import train

from simfast.models import checkpoint

RULE = "_rgb -> _ids"


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(folders, tmp_path_factory):
    """The target as photographs in sub-folders, and a second source with labels beside its images."""
    root = tmp_path_factory.mktemp("as people have it")
    for i in range(4):
        (root / f"photos/day {i % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(folders / f"target/train/images/{i}.png", root / f"photos/day {i % 2}/{i}.png")
    (root / "more").mkdir()
    for i in range(3):
        shutil.copy(folders / f"source/train/images/{i}.png", root / f"more/{i}_rgb.png")
        shutil.copy(folders / f"source/train/labels/{i}.png", root / f"more/{i}_ids.png")
    (root / "more/notes.txt").write_text("")
    return root


def options(settings, folders, data):
    return [
        *settings,
        *("--source", "folder", "--source-root", str(data / "more")),
        *("--source-labels", "labels", "--source-labels", RULE, "--source-share", "1", "--source-share", "2"),
        *("--target-root", str(data / "photos")),
        *("--eval-images", str(folders / "target/val/images"), "--eval-labels", str(folders / "target/val/labels")),
    ]


def test_a_mixture_resumes_where_the_straight_run_is_and_says_what_it_is_of(settings, folders, data, tmp_path, capsys):
    given = options(settings, folders, data)
    straight = train([*given, "--steps", "4", "--out", str(tmp_path / "straight")])
    said = capsys.readouterr().out
    assert f"8 labelled (5 of {folders / 'source'}, share 1; 3 of {data / 'more'}, share 2, 64x64), 4 target" in said
    assert said.count(f"{data / 'more'}: files of other suffixes than") == 1
    train([*given, "--steps", "2", "--out", str(tmp_path / "broken")])
    resumed = train(["--resume", str(tmp_path / "broken"), "--steps", "4"])
    assert resumed["last"] == straight["last"]
    first, second = (checkpoint.load(tmp_path / f"{name}/last.pt")["model"] for name in ("straight", "broken"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_both_stages_run_on_photographs_in_sub_folders(settings, folders, data, tmp_path):
    given = options(settings, folders, data)
    result = train([*given, "--stage", "all", "--steps", "2", "--out", str(tmp_path / "run")])
    assert result["stage2"]["last"]["step"] == 2
    made = sorted((tmp_path / "run/stage2/pseudo-labels").rglob("*.png"))
    assert [path.relative_to(path.parents[1]).as_posix() for path in made] == [
        *("day 0/0.png", "day 0/2.png", "day 1/1.png", "day 1/3.png")
    ]
    assert Image.open(made[0]).size == (64, 64)
