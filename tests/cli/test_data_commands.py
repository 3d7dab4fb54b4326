"""The commands about data alone: what is broken, what is odd, and parts that do not go together."""

import shutil

import numpy as np
import pytest
from PIL import Image
from running import data_of

from simfast.cli import call


def test_check_data_names_what_is_broken(settings, folders, tmp_path, capsys):
    assert call(["check-data", *data_of(settings)]) == 0
    root = tmp_path / "target"
    shutil.copytree(folders / "target", root)
    (root / "train" / "images" / "2.png").write_bytes(b"not a picture")
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(root / "val" / "labels" / "1.png")
    capsys.readouterr()
    assert call(["check-data", *data_of(settings), "--target-root", str(root)]) == 1
    found = capsys.readouterr().out
    assert "train/images/2.png" in found
    assert "val/labels/1.png" in found
    assert "77" in found


def test_check_data_warns_of_what_is_no_problem(settings, folders, tmp_path, capsys):
    root = tmp_path / "target"
    shutil.copytree(folders / "target", root)
    for path in (root / "val" / "labels").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 13, 255, 0).astype(np.uint8)).save(path)
    capsys.readouterr()
    assert call(["check-data", *data_of(settings), "--target-root", str(root)]) == 0
    found = capsys.readouterr().out
    assert "held-out: 2 images, no problem, warnings: 1" in found
    assert f"warning: {root}/val/labels: road is the only class in 2 label maps" in found
    assert "--target-ids FILE with {0: 0, 255: 1}" in found


@pytest.mark.parametrize("command", ["prepare", "check-data"])
def test_a_cache_is_not_filled_or_checked_where_two_sources_would_be_one_part(command, folders, tmp_path):
    roots = [shutil.copytree(folders / "source", tmp_path / who / "renders") for who in "ab"]
    given = ["--preset", "streets", "--cache", str(tmp_path / "cache"), "--source-split", "train"]
    given += [argument for root in roots for argument in ("--source", "folder", "--source-root", str(root))]
    with pytest.raises(SystemExit, match=rf"cache: .* of {roots[0]} \(source\) and {roots[1]} \(source 2\) alike"):
        call([command, *given])
    assert not (tmp_path / "cache").exists()


def test_images_that_are_trained_on_and_scored_on_are_warned_of_and_with_their_labels_a_problem(settings, capsys):
    given = [*data_of(settings), "--eval-split", "train"]
    for method, status, told in (("aa", 0, "no problem, warnings: 1"), ("target-only", 1, "problems: 1")):
        assert call(["check-data", *given, "--method", method]) == status
        said = capsys.readouterr().out
        assert f"held-out: 4 images, {told}" in said
        assert "got 4 of 4 in the target, too" in said
