"""Prediction of a user's own pictures: whatever their size and mode, whole files or none, and as evaluated."""

import io
import logging

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import trainId2label
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from predicting import Brightness, files_of, picture, predict
from torch import nn

from simfast.config.classes import CITYSCAPES, classes_of
from simfast.data.classes import coding_of, palette
from simfast.data.folder import open_pairs
from simfast.data.loader import evaluation_loader
from simfast.inference.evaluate import evaluate
from simfast.inference.predict import network_size
from simfast.models import deeplab_v2

CPU = torch.device("cpu")
PALETTE = palette(CITYSCAPES)


def labels_of(out, name):
    with Image.open(out / "labels" / f"{name}.png") as label:
        assert label.mode == "L"
        return np.asarray(label)


def test_pictures_of_any_size_keep_it_and_their_folders(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    sizes = {"wide": (97, 31), "deep/tall": (1, 150), "deep/er/dot.x": (1, 1), "flat": (200, 2)}
    for i, (name, size) in enumerate(sizes.items()):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, *size)).save(photos / f"{name}.png")
    (photos / ".hidden.png").write_bytes(b"")
    (photos / "notes.txt").write_text("no picture")
    assert predict(Brightness(), "rgb", photos, out, target_size=(64, 32)) == []
    written = [f"{kind}/{name}.png" for kind in ("labels", "colour", "overlay") for name in sizes]
    assert files_of(out) == sorted([*written, "classes.yaml"])
    for name, size in sizes.items():
        label = labels_of(out, name)
        colour, overlay = (Image.open(out / kind / f"{name}.png") for kind in ("colour", "overlay"))
        assert label.shape == size[::-1]
        assert label.max() < 19
        assert np.array_equal(np.asarray(colour.convert("RGB")), PALETTE[label])
        mixed = (np.asarray(Image.open(photos / f"{name}.png")).astype(int) + PALETTE[label]) / 2
        assert overlay.mode == "RGB"
        assert np.abs(np.asarray(overlay) - mixed).max() <= 1


def test_every_mode_is_read_as_it_looks(tmp_path):
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    grey = Image.fromarray(ramp)
    modes = {mode: grey.convert(mode) for mode in ("L", "RGB", "P", "LA")}
    modes["RGBA"] = Image.merge("RGBA", [grey] * 3 + [Image.fromarray(255 - ramp)])
    modes["16-bit"] = Image.fromarray(ramp.astype(np.uint16) * 257)
    for name, image in modes.items():
        image.save(tmp_path / f"{name}.png")
    Image.fromarray(ramp.astype(np.int32) * 257).save(tmp_path / "32-bit.tif")
    sideways = Image.Exif()
    sideways[274] = 6  # orientation: a quarter turn clockwise puts it upright
    grey.rotate(90, expand=True).save(tmp_path / "turned.png", exif=sideways)
    assert predict(Brightness(), "rgb", tmp_path, tmp_path / "out", size=(32, 32)) == []
    expected = labels_of(tmp_path / "out", "L")
    assert expected[:, 0].max() < 2
    assert expected[:, -1].min() > 15
    for name in (*modes, "32-bit", "turned"):
        assert np.array_equal(labels_of(tmp_path / "out", name), expected), name


def test_a_prediction_is_what_an_evaluation_sees(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture(0, 96, 64)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(tmp_path / "labels" / "a.png")
    torch.manual_seed(0)
    model = deeplab_v2("resnet18", 19).eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter)
    coding = coding_of("folder", CITYSCAPES)
    held_out = open_pairs(tmp_path / "images", tmp_path / "labels", (48, 32), coding, resize_labels=False)
    _, [(_, evaluated, _)] = evaluate(model, evaluation_loader(held_out, 1, 0), [0], "bgr", CPU, keep=1)
    assert predict(model.train(), "bgr", tmp_path / "images", tmp_path / "out", target_size=(48, 32)) == []
    assert len(np.unique(evaluated)) > 1
    assert np.array_equal(labels_of(tmp_path / "out", "a"), evaluated.numpy())
    assert model.training


def test_the_network_is_given_the_trained_area_in_the_pictures_shape(tmp_path):
    assert network_size((2048, 1024), (1024, 512)) == (1024, 512)
    assert network_size((100, 50), (1024, 512)) == (1024, 512)
    assert network_size((512, 1024), (1024, 512)) == (512, 1024)
    assert network_size((1920, 1080), (1024, 512)) == (965, 543)
    assert network_size((1, 100_000), (1024, 512)) == (32, 16384)
    assert network_size((100_000, 1), (64, 32)) == (64, 32)
    Image.fromarray(picture(0, 60, 30)).save(tmp_path / "a.png")
    model = Brightness()
    predict(model, "rgb", [tmp_path / "a.png"], tmp_path / "out")
    predict(model, "rgb", [tmp_path / "a.png"], tmp_path / "out", size=(40, 70))
    assert model.seen == [(1024, 512), (40, 70)]
    with pytest.raises(ValueError, match=r"size: must be at least 32 x 32, got \(31, 64\)"):
        predict(model, "rgb", [tmp_path / "a.png"], tmp_path / "out", size=(31, 64))


def test_label_ids_are_those_of_the_benchmark(tmp_path):
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (32, 1))).save(tmp_path / "ramp.png")
    predict(Brightness(), "rgb", tmp_path / "ramp.png", tmp_path / "train", size=(256, 32))
    predict(Brightness(), "rgb", tmp_path / "ramp.png", tmp_path / "ids", size=(256, 32), label_ids=True)
    train_ids, ids = labels_of(tmp_path / "train", "ramp"), labels_of(tmp_path / "ids", "ramp")
    assert set(np.unique(train_ids)) == set(range(19))
    assert np.array_equal(ids, np.array([trainId2label[i].id for i in range(19)])[train_ids])
    colours = [Image.open(tmp_path / kind / "colour" / "ramp.png").convert("RGB") for kind in ("train", "ids")]
    assert np.array_equal(*map(np.asarray, colours))


def test_a_bad_picture_is_named_and_skipped(tmp_path, caplog):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(12):
        Image.fromarray(picture(i, 40, 40)).save(photos / f"{i:02d}.png")
    whole = (photos / "03.png").read_bytes()
    (photos / "03.png").write_bytes(whole[: len(whole) // 2])
    (photos / "07.png").write_text("no picture")
    Image.fromarray(np.ones((4, 4), np.float32)).save(photos / "12.tif")
    with caplog.at_level(logging.INFO):
        skipped = predict(Brightness(), "rgb", photos, out, target_size=(32, 32), workers=2)
    assert [path.name for path, _ in skipped] == ["03.png", "07.png", "12.tif"]
    assert "floats" in skipped[2].reason
    assert f"skipped {photos / '03.png'}: " in caplog.text
    assert f"labelled 10 of 13 pictures, in {out}" in caplog.text
    assert len(files_of(out)) == 3 * 10 + 1


@settings(max_examples=40, deadline=10_000, derandomize=True)
@given(st.sampled_from(["png", "jpeg"]), st.floats(0, 0.999), st.none() | st.integers(1, 255))
def test_a_mangled_picture_is_labelled_or_named_and_the_other_is_labelled(tmp_path_factory, kind, share, change):
    photos, whole = tmp_path_factory.mktemp("photos", numbered=True), io.BytesIO()
    Image.fromarray(picture(0, 40, 40)).save(photos / "whole.png")
    Image.fromarray(picture(1, 40, 40)).save(whole, format=kind)
    content = bytearray(whole.getvalue())
    at = int(share * len(content))
    content[at:] = [content[at] ^ change, *content[at + 1 :]] if change else []
    (photos / f"mangled.{kind}").write_bytes(content)
    skipped = predict(Brightness(), "rgb", photos, photos / "out", target_size=(32, 32))
    assert all(path.name == f"mangled.{kind}" and len(reason.splitlines()) == 1 for path, reason in skipped)
    assert len(files_of(photos / "out/labels")) == 2 - len(skipped)


def test_a_write_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "a.png")
    predict(Brightness(), "rgb", tmp_path / "a.png", tmp_path / "out", target_size=(32, 32))
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out")}
    save = Image.Image.save

    def full_disk(self, path, *args, **options):
        if "overlay" in str(path.name):
            path.write(b"half")
            raise OSError("no space left")
        save(self, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        predict(Brightness(), "rgb", tmp_path / "a.png", tmp_path / "out", size=(64, 64), label_ids=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files_of(tmp_path / "out")} == before


def test_a_network_that_gives_no_numbers_is_an_error(tmp_path):
    class Broken(Brightness):
        def forward(self, images):
            features, logits = super().forward(images)
            return features, logits * torch.nan

    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"logits must be finite, got NaN or infinity for .*a\.png"):
        predict(Broken(), "rgb", tmp_path / "a.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def users_list(*ids):
    """As many classes as there are shades, with these ids in label files."""
    entries = [
        {"name": f"class {i}", "colour": [i, 200, 255 - i], "kind": "thing" if i % 2 else "stuff"}
        | ({"ids": [*own]} if own else {})
        for i, own in enumerate(ids)
    ]
    return classes_of({"title": "mine", "classes": entries})


@pytest.mark.parametrize("label_ids", [False, True])
def test_a_users_classes_are_painted_in_their_colours_and_listed_as_a_file_that_reads_the_labels(tmp_path, label_ids):
    classes = users_list(*[(1000 + i, i) for i in range(19)])
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (32, 1))).save(tmp_path / "ramp.png")
    out, options = tmp_path / "out", {"size": (256, 32), "label_ids": label_ids}
    for _ in range(2):  # its own list it may replace
        predict(Brightness(), "rgb", tmp_path / "ramp.png", out, classes=classes, **options)
    with Image.open(out / "labels" / "ramp.png") as label:
        assert label.mode == ("I;16" if label_ids else "L")
        label = np.asarray(label)
    assert set(np.unique(label)) == set(range(1000, 1019) if label_ids else range(19))
    listed = classes_of(out / "classes.yaml")
    assert [(one.name, one.colour, one.kind) for one in listed.entries] == [
        (one.name, one.colour, one.kind) for one in classes.entries
    ]
    train_ids = np.vectorize(listed.ids.get)(label)
    colour = np.asarray(Image.open(out / "colour" / "ramp.png").convert("RGB"))
    assert np.array_equal(colour, palette(classes)[train_ids])


def test_the_list_of_built_in_classes_says_what_was_written_not_what_data_sets_hold(tmp_path):
    Image.fromarray(picture(0, 40, 40)).save(tmp_path / "a.png")
    for label_ids in (False, True):
        predict(Brightness(), "rgb", tmp_path / "a.png", tmp_path / "out", size=(32, 32), label_ids=label_ids)
        listed = classes_of(tmp_path / "out" / "classes.yaml")
        expected = CITYSCAPES.ids if label_ids else {i: i for i in range(19)}
        assert listed.names == CITYSCAPES.names
        assert listed.ids.items() <= expected.items()


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path):
    photo, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(picture(0, 40, 40)).save(photo)
    nameless = users_list(*[(i,) for i in range(7)], (), *[(i,) for i in range(8, 19)])
    with pytest.raises(ValueError, match=r"label_ids: every class of mine must have ids, got none for 'class 7'"):
        predict(Brightness(), "rgb", photo, out, classes=nameless, label_ids=True)
    with pytest.raises(ValueError, match=r"classes: must be the network's 19, got 5"):
        predict(Brightness(), "rgb", photo, out, classes=users_list(*[()] * 5))
    (tmp_path / "classes.yaml").write_text("classes: []  # the user's own")
    with pytest.raises(ValueError, match=r"classes.yaml: would be overwritten"):
        predict(Brightness(), "rgb", photo, tmp_path)
    assert files_of(tmp_path) == ["a.png", "classes.yaml"]
