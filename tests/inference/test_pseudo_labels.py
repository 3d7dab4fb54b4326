"""Pseudo labels against np.median over all pixels, and that however often they are stopped, they come out the same."""

import logging
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_makers import ABSENT, NAMES, NUM_CLASSES, Network, Pictures, contents, make, read, said
from PIL import Image
from torch import nn

from simfast.config.classes import CITYSCAPES
from simfast.data.classes import coding_of
from simfast.data.folder import open_pairs
from simfast.inference.label_folder import require_labels
from simfast.inference.pseudo_labels import BINS
from simfast.models.inputs import RGB_MEAN, RGB_STD, normalise


class Lookup(nn.Module):
    """Logits [K] of each pixel by its red value."""

    def __init__(self, table):
        super().__init__()
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32))

    def forward(self, images):
        red = (images[:, 0] * 255 * RGB_STD[0] + 255 * RGB_MEAN[0]).round().long()
        return images, self.table[red].permute(0, 3, 1, 2)


@pytest.fixture
def straight(tmp_path):
    """The files of a run that nothing stopped."""
    make(tmp_path / "straight")
    return contents(tmp_path / "straight")


@pytest.mark.parametrize(("softmax_at", "cap"), [("labels", 0.65), ("features", 0.53)])  # between the medians
def test_thresholds_and_maps_equal_an_exact_computation(tmp_path, softmax_at, cap):
    model, dataset = Network().eval(), Pictures(7)
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(dataset.images), "rgb"))[1].double()
    resize = {"size": dataset.images.shape[2:], "mode": "bilinear", "align_corners": True}
    if softmax_at == "labels":
        probability = F.softmax(F.interpolate(logits, **resize), 1).numpy()
    else:
        probability = F.interpolate(F.softmax(logits, 1), **resize).numpy()
    label, confidence = probability.argmax(1), probability.max(1)

    result = make(tmp_path, model.train(), dataset, softmax_at=softmax_at, cap=cap)
    assert model.training
    assert torch.equal(model.norm.running_mean, torch.zeros(3)), "made in eval mode"
    assert result == said((tmp_path / "thresholds.json").read_text())
    maps = np.stack([read(tmp_path / f"{name}.png") for name in dataset.names])
    capped = 0
    for c in range(NUM_CLASSES):
        found, ours = label == c, result["classes"][NAMES[c]]
        assert ours["predicted_pixels"] == found.sum()
        assert ours["kept_pixels"] == (maps == c).sum()
        if c == ABSENT:
            assert ours["kept_pixels"] == 0
            assert ours["threshold"] is ours["median"] is ours["kept_fraction"] is None
            continue
        median = np.median(confidence[found])
        assert -1e-6 <= median - ours["median"] < 1 / BINS + 1e-6  # 1e-6: the network computes in float32
        assert ours["threshold"] == min(ours["median"], cap)
        assert ours["kept_fraction"] == ours["kept_pixels"] / ours["predicted_pixels"]
        threshold = min(median, cap)
        sure = found & (np.abs(confidence - threshold) > 1e-4)
        np.testing.assert_array_equal(maps[sure], np.where(confidence >= threshold, c, 255)[sure])
        capped += median > cap
    assert 0 < capped < NUM_CLASSES - 1


def test_a_case_worked_by_hand(tmp_path):
    confidences = [  # of the pixels, by class; the other three classes share the rest
        [0.95, 0.99, 0.97],  # median 0.97, capped at 0.9: all are kept
        [0.6, 0.7, 0.8],  # median 0.7: a pixel that equals it is kept
        [0.5, 0.7],  # median 0.6
        [],
    ]
    table, kept = [], []
    for c, of_class in enumerate(confidences):
        for value in of_class:
            table.append(np.log([value if k == c else (1 - value) / 3 for k in range(4)]))
            kept.append(c if value >= min(np.median(of_class), 0.9) else 255)
    dataset = Pictures(2, 2, 2)
    dataset.images[:] = np.arange(8).reshape(2, 1, 2, 2)
    result = make(tmp_path, Lookup(np.array(table)), dataset, class_names=NAMES[:4], info={"step": 3})
    assert [read(tmp_path / f"{name}.png").ravel().tolist() for name in dataset.names] == [kept[:4], kept[4:]]
    assert kept == [0, 0, 0, 255, 1, 1, 255, 2]
    assert {key: result[key] for key in ("images", "size", "softmax_at", "cap", "info")} == {
        "images": 2, "size": [2, 2], "softmax_at": "labels", "cap": 0.9, "info": {"step": 3},
    }  # fmt: skip
    assert [of_class["kept_pixels"] for of_class in result["classes"].values()] == [3, 2, 1, 0]
    assert [of_class["threshold"] for of_class in result["classes"].values()] == [
        0.9,
        pytest.approx(0.7, abs=1 / BINS),
        pytest.approx(0.6, abs=1 / BINS),
        None,
    ]


def test_equal_confidences_are_all_kept(tmp_path):
    dataset = Pictures(1, 4, 4)
    result = make(tmp_path, Lookup(np.zeros((256, 3))), dataset, class_names=NAMES[:3])  # 1 / 3 is no edge of a bin
    assert result["classes"]["sky"]["kept_fraction"] == 1
    assert not read(tmp_path / f"{dataset.names[0]}.png").any()


@pytest.mark.parametrize("call", [1, 5, 9, 10, 14, 18], ids="interrupted at forward {}".format)
def test_interrupted_and_called_again_it_goes_on_to_the_same_bytes(tmp_path, straight, call):
    def interrupt(n):
        if n == call:
            raise KeyboardInterrupt

    model, out = Network().train(), tmp_path / "out"
    model.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(out, model)
    assert model.training
    assert not (out / "thresholds.json").exists()
    make(out, model)
    assert contents(out) == straight
    assert model.calls == 2 * 9 + 1, "the interrupted image alone is computed again"


@pytest.mark.parametrize("images", [0, 4, 9, 13])
def test_told_to_stop_it_returns_none_and_later_goes_on_to_the_same_bytes(tmp_path, straight, images):
    model, out = Network(), tmp_path / "out"
    assert make(out, model, stop=lambda: model.calls == images) is None
    assert model.calls == images
    assert make(out, model) is not None
    assert model.calls == 2 * 9
    assert contents(out) == straight


def test_killed_it_goes_on_from_the_last_save(tmp_path, straight):
    model, out = Network(), tmp_path / "out"

    def copy(n):  # what a kill -9 at the 8th image would leave
        if n == 8:
            shutil.copytree(out, tmp_path / "killed")

    model.on_call = copy
    make(out, model, save_every=3)
    again = Network()
    make(tmp_path / "killed", again)
    assert again.calls == 2 * 9 - 6
    assert contents(tmp_path / "killed") == contents(out) == straight


def test_a_truncated_map_is_made_again(tmp_path, straight):
    model, out = Network(), tmp_path / "out"
    make(out, model, stop=lambda: model.calls == 14)
    path = out / "street_002.png"
    path.write_bytes(path.read_bytes()[:40])
    make(out, model)
    assert contents(out) == straight
    assert model.calls == 2 * 9 + 1


@pytest.mark.parametrize("damage", ["truncated", "other network", "other options"])
def test_progress_that_is_of_no_use_is_dropped_with_a_message(tmp_path, straight, caplog, damage):
    first, out = Network(seed=int(damage == "other network")), tmp_path / "out"
    make(out, first, stop=lambda: first.calls == 14, cap=0.5 if damage == "other options" else 0.9)
    assert (out / "street_002.png").exists()
    if damage == "truncated":
        path = out / ".progress.pt"
        path.write_bytes(path.read_bytes()[:1000])
    model = Network()
    with caplog.at_level(logging.WARNING, logger="simfast"):
        make(out, model)
    assert "beginning anew" in caplog.text
    assert model.calls == 2 * 9
    assert contents(out) == straight


def test_a_complete_set_is_read_by_its_own_call_and_refused_to_another(tmp_path, straight):
    out = tmp_path / "straight"
    model = Network()
    assert make(out, model) == said(straight["thresholds.json"])
    assert model.calls == 0
    others = [{"model": Network(seed=1)}, {"dataset": Pictures(8)}, {"dataset": Pictures(9, 20, 20)}, {"cap": 0.8}]
    for other in others:
        with pytest.raises(ValueError, match=r"thresholds.json: must be of this network, data set and options"):
            make(out, **other)
    with pytest.raises(ValueError, match=r"must be of this network, data set and options"):
        make(out, class_names=NAMES[::-1])
    require_labels(out, NAMES)
    with pytest.raises(
        ValueError, match=r"straight must be of the run's classes \(a, b\), got labels of sky, soil, leaf"
    ):
        require_labels(out, ["a", "b"])
    with pytest.raises(ValueError, match=r"elsewhere must be complete, got no thresholds.json"):
        require_labels(tmp_path / "elsewhere", NAMES)
    assert contents(out) == straight
    (out / "street_004.png").unlink()
    with pytest.raises(ValueError, match=r"street_004.png: must be there"):
        make(out)


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "street_003.png").write_bytes(b"a picture of the data set")
    with pytest.raises(ValueError, match=r"street_003.png: must not be there"):
        make(tmp_path)
    assert contents(tmp_path) == {"street_003.png": b"a picture of the data set"}


class Damaged(Pictures):
    """With bad files among them."""

    BAD = (0, 1, 5, 8)

    def __getitem__(self, i):
        if i in self.BAD:
            raise ValueError(f"{self.names[i]}.png: must be a readable picture")
        return super().__getitem__(i)


@pytest.mark.parametrize("images", [None, 0, 1, 4, 5, 7, 9])
def test_bad_files_that_may_be_keep_nothing_and_change_nothing_of_the_others(tmp_path, images, caplog):
    model, good = Network(), Pictures(9)
    if images is not None:
        assert make(tmp_path / "out", model, Damaged(9), skip=4, stop=lambda: model.calls == images) is None
    found = make(tmp_path / "out", model, Damaged(9), skip=4)
    assert model.calls == 2 * 5
    assert sorted(found["bad_files"]) == [f"street_{i:03d}" for i in Damaged.BAD]
    assert caplog.text.count("of up to 4, left out: ") == 4  # each once
    left = [i for i in range(9) if i not in Damaged.BAD]
    good.names, good.images = [good.names[i] for i in left], good.images[left]
    assert make(tmp_path / "good", dataset=good)["classes"] == found["classes"]
    for i, name in enumerate(Damaged(9).names):
        ours = tmp_path / f"out/{name}.png"
        if i in left:
            assert ours.read_bytes() == (tmp_path / f"good/{name}.png").read_bytes()
        else:
            assert (read(ours) == 255).all()
    assert make(tmp_path / "out", dataset=Damaged(9), skip=4) == found


def test_a_bad_file_that_was_good_when_it_was_counted_is_told_also_by_a_run_that_goes_on(tmp_path, monkeypatch):
    class Lost(Pictures):
        def __getitem__(self, i):
            if i == 2 and model.calls >= 4:
                raise OSError("street_002.png: Input/output error")
            return super().__getitem__(i)

    def killed(*_):
        raise KeyboardInterrupt

    model = Network()
    with monkeypatch.context() as patch:
        patch.setattr("simfast.inference.pseudo_labels.write_thresholds", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, model, Lost(4), skip=1)
    found = make(tmp_path, model, Lost(4), skip=1)
    assert found["bad_files"] == {"street_002": "street_002.png: Input/output error"}
    assert (read(tmp_path / "street_002.png") == 255).all()


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (None, "street_000.png: must be a readable picture$"),
        (1, "street_001.png: must be a readable picture$"),  # before there is a size
        (3, r"street_008.png: .*\(skip_bad_files: more than 3 bad files, with street_000, street_001, street_005\)"),
    ],
)
def test_more_bad_files_than_may_be_are_an_error(tmp_path, skip, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "out", dataset=Damaged(9), skip=skip)


def test_names_with_sub_folders_keep_them_also_where_a_run_goes_on(tmp_path):
    pictures, flat = Pictures(4), Pictures(4)
    pictures.names = ["b", "day 1/a", "day 1/late/a", "day 2/a"]
    make(tmp_path / "flat", dataset=flat)
    model = Network()
    assert make(tmp_path / "nested", model, pictures, stop=lambda: model.calls >= 6) is None
    make(tmp_path / "nested", dataset=pictures)
    for name, other in zip(pictures.names, flat.names, strict=True):
        assert (read(tmp_path / f"nested/{name}.png") == read(tmp_path / f"flat/{other}.png")).all()
    assert make(tmp_path / "nested", dataset=pictures)["images"] == 4


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "day/../../a"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    pictures = Pictures(1)
    pictures.names = [name]
    with pytest.raises(ValueError, match=r"names: must be a relative path that does not go upwards, got "):
        make(tmp_path / "out", dataset=pictures)


def test_a_data_set_read_by_workers_gives_the_same_bytes(tmp_path):
    pictures = Pictures(3)
    (tmp_path / "images").mkdir()
    for name, image in zip(pictures.names, pictures.images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "images" / f"{name}.png")
    folder = open_pairs(tmp_path / "images", None, (25, 18), coding_of("folder", CITYSCAPES))
    make(tmp_path / "here", dataset=folder)
    make(tmp_path / "workers", dataset=folder, workers=1)
    assert contents(tmp_path / "here") == contents(tmp_path / "workers")
    assert {f"{name}.png" for name in pictures.names} | {"thresholds.json"} == set(contents(tmp_path / "here"))


def test_bad_input_is_named(tmp_path):
    mixed, broken = Pictures(2), Network()
    mixed.images = [mixed.images[0], mixed.images[1][:, :, 1:]]
    broken.convolution.bias.data[0] = torch.nan
    for message, options in (
        (r"softmax_at: must be one of labels, features, got 'logits'", {"softmax_at": "logits"}),
        (r"cap: must be in \(0, 1\], got 0", {"cap": 0}),
        (r"class_names: must be from 2 to 255, got 256", {"class_names": [str(i) for i in range(256)]}),
        (r"class_names: must be of the network's 6 classes, got 19", {"class_names": [str(i) for i in range(19)]}),
        (r"dataset: must have an image", {"dataset": Pictures(0)}),
        (r"street_001: must have the first image's size", {"dataset": mixed}),
        (r"logits must be numbers, got NaN at 4050 pixels", {"model": broken}),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path / message[:5], **options)
