"""Which pictures of those named are predicted, and what each one's outputs are called."""

import logging
import os

import pytest
import torch
from PIL import Image
from predicting import Brightness, files_of, picture, predict

from simfast.data import open_dataset
from simfast.data.prepare import prepare
from simfast.inference.pseudo_labels import make_pseudo_labels

CPU = torch.device("cpu")


def test_what_is_no_regular_file_is_named_and_the_others_go_on(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    longest = "x" * 251 + ".png"
    for name in ("a.png", longest, "z.png"):
        Image.fromarray(picture(0, 40, 40)).save(photos / name)
    os.mkfifo(photos / "pipe.png")
    links = {"loop.png": "loop.png", "zero.png": "/dev/zero", "broken.png": "nowhere", "folder.png": "."}
    for name, to in links.items():
        (photos / name).symlink_to(to)
    for number, inputs in enumerate((photos, sorted(photos.iterdir()))):
        inputs = [path for path in inputs if path.name != "folder.png"] if number else inputs
        skipped = predict(Brightness(), "rgb", inputs, out / str(number), target_size=(32, 32))
        assert [path.name for path, _ in skipped] == ["broken.png", "loop.png", "pipe.png", "zero.png"]
        assert all("\n" not in reason for _, reason in skipped)
        assert files_of(out / str(number) / "labels") == ["a.png", longest, "z.png"]


def test_a_path_that_is_too_long_for_an_output_stops_no_other(tmp_path):
    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "a.png")
    # The whole path is too long once the output's folder is added.
    names = ["d" * 250] * ((4089 - len(str(tmp_path))) // 251)
    deep = os.open(tmp_path, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=deep)
        deep, above = os.open(name, os.O_RDONLY, dir_fd=deep), deep
        os.close(above)
    with open(os.open("b.png", os.O_WRONLY | os.O_CREAT, dir_fd=deep), "wb") as file:
        Image.fromarray(picture(0, 40, 40)).save(file, format="PNG")
    os.close(deep)
    out = tmp_path / ("o" * 250)
    (skipped,) = predict(Brightness(), "rgb", tmp_path, out, target_size=(32, 32))
    assert "too long" in skipped.reason
    assert files_of(out / "labels") == ["a.png"]


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    odd = os.fsdecode(b"\xff\xfe.png")
    Image.fromarray(picture(0, 40, 40)).save(photos / odd)
    (photos / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    (skipped,) = predict(Brightness(), "rgb", photos, tmp_path / "out", target_size=(32, 32))
    assert "cannot identify" in skipped.reason
    assert os.listdir(tmp_path / "out/labels") == [odd]


def test_a_picture_whose_output_would_lie_below_anothers_is_refused(tmp_path):
    for name in ("a.jpg", "a.png/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(0, 40, 40)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"b\.jpg: must have an output of its own, got a\.png/b\.png below that of"):
        predict(Brightness(), "rgb", tmp_path, tmp_path / "out")


def test_inputs_that_cannot_go_together_leave_nothing_behind(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "sub/b.png"):
        Image.fromarray(picture(0, 40, 40)).save(photos / name)

    def refuse(inputs, said, out=out):
        with pytest.raises(ValueError, match=said):
            predict(Brightness(), "rgb", inputs, out)

    refuse(photos, r"a\.png: must have an output of its own, got a\.png for .*a\.jpg too")
    refuse([photos / "a.png", photos / "nowhere.png"], r"nowhere\.png: must be a picture or a folder")
    (tmp_path / "empty").mkdir()
    refuse([photos / "a.png", tmp_path / "empty"], "empty: must hold a picture")
    assert not out.exists()
    predict(Brightness(), "rgb", photos / "sub", out, target_size=(32, 32))
    before = (out / "labels" / "b.png").read_bytes()
    refuse([out / "labels" / "b.png"], "is an input that would be overwritten")
    assert (out / "labels" / "b.png").read_bytes() == before


def test_output_beside_the_pictures_is_not_taken_for_input(tmp_path):
    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "a.png")
    for _ in range(2):
        predict(Brightness(), "rgb", tmp_path, tmp_path, target_size=(32, 32))
        assert files_of(tmp_path) == ["a.png", "classes.yaml", "colour/a.png", "labels/a.png", "overlay/a.png"]


def test_what_was_predicted_among_photographs_is_no_photograph(tmp_path):
    for name in ("a.png", "colour/b.png"):  # a folder of that name may be a user's own
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(0, 40, 40)).save(tmp_path / name)
    predict(Brightness(), "rgb", tmp_path, tmp_path / "predictions", target_size=(32, 32))
    predict(Brightness(), "rgb", tmp_path, tmp_path / "again", target_size=(32, 32))
    assert files_of(tmp_path / "again/labels") == ["a.png", "colour/b.png"]
    photos = open_dataset("folder", tmp_path, "train", (32, 32), labelled=False)
    assert photos.names == ["a", "colour/b"]
    assert f"{tmp_path}: folders of predictions are passed over (6, such as again/colour)" in photos.passed_over


def test_what_simfast_wrote_among_photographs_is_no_photograph(tmp_path, caplog):
    (tmp_path / "heap/album").mkdir(parents=True)
    for name in ("a.png", "album/b.png"):
        Image.fromarray(picture(0, 40, 40)).save(tmp_path / "heap" / name)
    (tmp_path / "heap/album/index.json").write_text("{}")  # a user's own
    photos = open_dataset("folder", tmp_path / "heap", "train", (32, 32), labelled=False)
    part = prepare(photos, tmp_path / "heap/cache", 0)
    unfinished = tmp_path / "heap/cache/unfinished"
    unfinished.mkdir()
    (unfinished / "images-00001.npy").write_bytes((part / "images-00000.npy").read_bytes())
    (unfinished / "shard-00001.json").write_text("{}")
    make_pseudo_labels(
        Brightness(), photos, tmp_path / "heap/labelled", "rgb", CPU, class_names=[str(i) for i in range(19)]
    )
    for run in ("run", "all/stage1"):
        (tmp_path / "heap" / run).mkdir(parents=True)
        for name in ("config.yaml", "last.pt"):
            (tmp_path / "heap" / run / name).write_text("")
        Image.fromarray(picture(0, 40, 40)).save(tmp_path / "heap" / run / "panel-00001.png")
    (tmp_path / "heap/rows").mkdir()
    for name in ("ablation.json", "ablation.md"):
        (tmp_path / "heap/rows" / name).write_text("")
    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "heap/rows/panel.png")
    again = open_dataset("folder", tmp_path / "heap", "train", (32, 32), labelled=False)
    assert again.names == photos.names == ["a", "album/b"]
    said = "\n".join(again.passed_over)
    for what, example in (
        ("folders of runs are passed over (2, such as all/stage1)", "run"),
        ("folders of ablations are passed over (1, such as rows)", "rows"),
        ("folders of prepared data are passed over (2, such as cache/", "cache"),
        ("folders of pseudo labels are passed over (1, such as labelled)", "labelled"),
    ):
        assert what in said, example
    with caplog.at_level(logging.INFO):
        predict(Brightness(), "rgb", tmp_path / "heap", tmp_path / "out", target_size=(32, 32))
    assert files_of(tmp_path / "out/labels") == ["a.png", "album/b.png"]
    assert "folders of pseudo labels are passed over (1, such as labelled)" in caplog.text


def test_a_folder_is_searched_as_those_to_train_on_are(tmp_path, caplog):
    for folder in ("photos/day", "photos/@eaDir", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(picture(0, 40, 40)).save(tmp_path / folder / "a.png")
    (tmp_path / "photos/b.heic").write_bytes(b"")
    for link, to in (("night", "elsewhere"), ("loop", "photos")):
        (tmp_path / "photos" / link).symlink_to(tmp_path / to)
    with caplog.at_level(logging.INFO):
        predict(Brightness(), "rgb", tmp_path / "photos", tmp_path / "out", target_size=(32, 32))
    assert files_of(tmp_path / "out/labels") == ["day/a.png", "night/a.png"]
    photos = open_dataset("folder", tmp_path / "photos", "train", (32, 32), labelled=False)
    assert photos.names == ["day/a", "night/a"]
    assert len(photos.passed_over) == 3
    assert all(said in caplog.text for said in photos.passed_over)
