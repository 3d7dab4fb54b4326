"""GTA5, SYNTHIA and Cityscapes in trees like the released ones; images and labels taken from other folders."""

import logging

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers import labels as official
from PIL import Image
from trees import ids_map, make_cityscapes, make_gta5, make_synthia, picture, save, save_native_synthia

from simfast.config.classes import CITYSCAPES
from simfast.data import open_dataset
from simfast.data.classes import coding_of

SIZE = (10, 7)
MAKERS = {"gta5": make_gta5, "synthia": make_synthia, "cityscapes": make_cityscapes}
SYNTHIA_NAMES = {
    **{3: "road", 4: "sidewalk", 2: "building", 21: "wall", 5: "fence", 7: "pole", 15: "traffic light"},
    **{9: "traffic sign", 6: "vegetation", 16: "terrain", 1: "sky", 10: "person", 17: "rider", 8: "car"},
    **{18: "truck", 19: "bus", 20: "train", 12: "motorcycle", 11: "bicycle"},
}


def open_full(name, root, split="train", **options):
    """Labels at the size of their files."""
    return open_dataset(name, root, split, SIZE, resize_labels=False, **options)


# --- id tables -------------------------------------------------------------------------------------------------------


def test_cityscapes_and_gta5_ids_are_the_official_table():
    table = {label.id: label.trainId for label in official.labels if label.id >= 0}
    assert table == coding_of("cityscapes", CITYSCAPES).ids
    assert table | {34: 255} == coding_of("gta5", CITYSCAPES).ids


def test_synthia_ids_lead_to_the_classes_of_their_names():
    for raw in range(23):
        expected = official.name2label[SYNTHIA_NAMES[raw]].trainId if raw in SYNTHIA_NAMES else 255
        assert coding_of("synthia", CITYSCAPES).ids[raw] == expected, raw


# --- as released -----------------------------------------------------------------------------------------------------


def test_gta5_labels_are_palette_indices(tmp_path):
    make_gta5(tmp_path, ids=range(20))
    data = open_full("gta5", tmp_path)
    assert data.names == ["00001", "00002", "00003"]
    assert data.class_ids == tuple(range(19))
    for image, label, _ in data:
        assert image.shape == (3, 7, 10)
        assert label[0].tolist() == [*[255] * 7, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6]


def test_synthia_labels_are_the_first_channel_of_16_bit_pngs(tmp_path):
    make_synthia(tmp_path, ids=range(20))
    with Image.open(tmp_path / "GT/LABELS/0000000.png") as wrong:
        assert np.asarray(wrong)[..., 0].max() == 0  # what Pillow makes of it: the trap
    data = open_full("synthia", tmp_path)
    assert data.names == ["0000000", "0000001", "0000002"]
    assert data[0][1][0].tolist() == [255, 10, 2, 0, 1, 4, 8, 5, 13, 7, 11, 18, 17, 255, 255, 6, 9, 12, 14, 15]
    assert data.class_ids == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)


@pytest.mark.parametrize("decoded", ["parsed_LABELS", "synthia_mapped_to_cityscapes"])
def test_synthia_decoded_labels_equal_native_ones(decoded, tmp_path, caplog):
    caplog.set_level(logging.INFO, "simfast")
    native = open_full("synthia", make_synthia(tmp_path / "native", ids=range(23)))
    data = open_full("synthia", make_synthia(tmp_path / "decoded", ids=range(23), native=False, decoded=decoded))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(native, data, strict=True))
    assert f"labels are read from {tmp_path / 'decoded' / decoded}" in caplog.text


def test_synthia_native_labels_win_over_decoded_ones(tmp_path):
    make_synthia(tmp_path, ids=[8], decoded="parsed_LABELS")
    for path in (tmp_path / "parsed_LABELS").iterdir():
        path.write_bytes(b"")
    assert open_full("synthia", tmp_path)[0][1].unique().tolist() == [13]


def test_cityscapes_reads_label_ids_of_a_split_in_the_order_of_names(tmp_path):
    make_cityscapes(tmp_path)
    data = open_full("cityscapes", tmp_path, "val")
    assert data.names == [f"{city}_00000{i}_000019_leftImg8bit" for city in ("frankfurt", "lindau") for i in (0, 1)]
    image, label, _ = data[0]
    assert (image.shape, label.shape) == ((3, 7, 10), (16, 32))
    assert label[0, :4].tolist() == [0, 1, 18, 0]
    assert data.class_ids == tuple(range(19))


def test_cityscapes_needs_no_labels_where_none_are_read(tmp_path):
    make_cityscapes(tmp_path, ("train", "test"), labelled=False)
    for split in ("train", "test"):
        assert open_full("cityscapes", tmp_path, split, labelled=False)[0][1].shape == (0,)


@pytest.mark.parametrize(("name", "complete"), [("gta5", 24966), ("synthia", 9400), ("cityscapes", 2975)])
def test_an_incomplete_set_is_a_warning_with_both_counts(name, complete, tmp_path, caplog):
    data = open_full(name, MAKERS[name](tmp_path))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [f"found {len(data)} images, the complete set has {complete}" in text for text in warnings] == [True]


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "gone", "message"),
    [
        ("gta5", "val", None, "gta5: split must be train, got 'val'"),
        ("gta5", "train", "images", r"images: must be a folder, got nothing there"),
        ("gta5", "train", "labels", r"labels: must be a folder, got nothing there"),
        ("gta5", "train", "labels/00002.png", r"images/00002\.png: must have a label map, got no .*labels/00002\.png"),
        ("synthia", "val", None, "synthia: split must be train, got 'val'"),
        ("synthia", "train", "RGB", r"RGB: must be a folder, got nothing there"),
        ("synthia", "train", "GT/LABELS", r"must hold the labels in GT/LABELS, parsed_LABELS or synthia_mapped_\S+,"),
        ("cityscapes", "dev", None, "cityscapes: split must be one of train, val, test, got 'dev'"),
        ("cityscapes", "test", None, "cityscapes: split must be train or val where labels are read"),
        (
            "cityscapes",
            "train",
            "leftImg8bit",
            r"leftImg8bit/train: must be a folder with one of each city, got nothing",
        ),
        ("cityscapes", "val", "gtFine/val", r"gtFine/val: must be a folder with one of each city, got nothing"),
        ("cityscapes", "train", "leftImg8bit/train/zurich", None),
        (
            *("cityscapes", "val", "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"),
            r"lindau_000001_000019_gtFine_labelIds\.png: must be the label map of its image, got nothing there$",
        ),
    ],
)
def test_a_wrong_tree_is_named_before_training(name, split, gone, message, tmp_path):
    MAKERS[name](tmp_path)
    if gone:
        (tmp_path / gone).rename(tmp_path / "gone")
    if message is None:  # a city less is a smaller set
        assert len(open_full(name, tmp_path, split)) == 2
        return
    with pytest.raises(ValueError, match=message):
        open_full(name, tmp_path, split)


def test_cityscapes_train_ids_alone_are_told_from_label_ids(tmp_path):
    make_cityscapes(tmp_path)
    for path in tmp_path.glob("gtFine/*/*/*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    wanted = r"aachen_000000_000019_gtFine_labelIds\.png: must be the label map"
    came = r"got aachen_000000_000019_gtFine_labelTrainIds\.png alone .*\(missing in all: 4\)"
    with pytest.raises(ValueError, match=f"{wanted}.*{came}"):
        open_full("cityscapes", tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def unknown_id(path, raw):
    save_native_synthia(path, ids_map([3, raw])) if "GT/LABELS" in str(path) else save(path, ids_map([7, raw]))


@pytest.mark.parametrize(
    ("name", "file", "spoil", "message"),
    [
        ("gta5", "images/00001.png", truncate, "must be a readable picture"),
        ("gta5", "labels/00001.png", truncate, "must be a readable picture"),
        ("gta5", "labels/00001.png", lambda path: unknown_id(path, 35), "label ids must be among 0-34, got 35"),
        (
            "gta5",
            "labels/00001.png",
            lambda path: save(path, picture(0)),
            "a label map must hold ids where no colours are listed",
        ),
        ("synthia", "GT/LABELS/0000000.png", truncate, "must be a readable picture, got a truncated or broken one"),
        ("synthia", "GT/LABELS/0000000.png", lambda path: unknown_id(path, 23), "label ids must be among 0-22, got 23"),
        (
            *("synthia", "GT/LABELS/0000000.png"),
            lambda path: save_native_synthia(path, np.full((14, 20), 300)),
            "label ids must be among 0-22, got 300",
        ),
        (
            *("synthia", "GT/LABELS/0000000.png", lambda path: save(path, picture(0))),
            "must be a PNG of three 16-bit channels, as released, got 3 of 8 bits",
        ),
        (
            "synthia",
            "GT/LABELS/0000000.png",
            lambda path: path.unlink(),
            "must be a readable picture, got FileNotFound",
        ),
        (
            *("synthia", "GT/LABELS/0000000.png", lambda path: save_native_synthia(path, ids_map([3], (21, 14)))),
            "must have its image's size 20x14, got 21x14",
        ),
        (
            *("cityscapes", "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"),
            lambda path: save(path, ids_map([7, 34], (32, 16))),
            "label ids must be among 0-33, got 34",
        ),
    ],
)
def test_a_bad_file_is_named_when_it_is_read(name, file, spoil, message, tmp_path):
    data = open_full(name, MAKERS[name](tmp_path))
    spoil(tmp_path / file)
    with pytest.raises(ValueError, match=f"{file}: .*{message}"):
        data[0]
    assert data[1][2] == data.names[1]


def test_a_16_bit_png_cut_at_any_length_is_an_error(tmp_path):
    make_synthia(tmp_path, count=1, ids=range(20))
    data, path = open_full("synthia", tmp_path), tmp_path / "GT/LABELS/0000000.png"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"0000000\.png: must be a readable picture"):
            data[0]


# --- replaced images and labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gta5", "synthia"])
@pytest.mark.parametrize("own", ["own images are there", "only labels are"])
def test_transferred_images_of_any_size_and_suffix_take_the_place_of_the_sets_own(name, own, tmp_path):
    MAKERS[name](tmp_path / name)
    before = open_full(name, tmp_path / name)
    names = before.names
    (tmp_path / "it").mkdir()
    for i, stem in enumerate(names):
        picture(50 + i, (31, 22)).save(tmp_path / f"it/{stem}.bmp")
    save(tmp_path / "it/other.png", picture(0))
    expected = [(image, label) for image, label, _ in before]
    if own == "only labels are":
        (tmp_path / name / ("images" if name == "gta5" else "RGB")).rename(tmp_path / "gone")
    data = open_full(name, tmp_path / name, images=tmp_path / "it")
    assert data.names == names
    for i, (image, label, _) in enumerate(data):
        bicubic = np.asarray(picture(50 + i, (31, 22)).resize(SIZE, Image.Resampling.BICUBIC))
        assert np.array_equal(image.permute(1, 2, 0), bicubic)
        assert torch.equal(label, expected[i][1])
    assert data.read_from["images"] == str(tmp_path / "it")


def test_missing_transferred_images_are_counted_and_the_first_is_named(tmp_path):
    make_gta5(tmp_path / "gta5", count=4)
    for i in (1, 3):
        save(tmp_path / f"it/{i:05d}.png", picture(i))
    message = r"it: must hold an image for each of 4 names, got none for 00002 \(missing in all: 2\)"
    with pytest.raises(ValueError, match=message):
        open_full("gta5", tmp_path / "gta5", images=tmp_path / "it")


def test_pseudo_labels_take_the_place_of_the_sets_own_which_need_not_be_there(tmp_path):
    make_cityscapes(tmp_path / "cs", ("train",), labelled=False)
    names = open_full("cityscapes", tmp_path / "cs", labelled=False).names
    for name in names:
        save(tmp_path / f"pseudo/{name}.png", ids_map([0, 18, 255], SIZE))
    data = open_dataset("cityscapes", tmp_path / "cs", "train", (8, 4), labels=tmp_path / "pseudo")
    nearest = Image.fromarray(ids_map([0, 18, 255], SIZE)).resize((8, 4), Image.Resampling.NEAREST)
    assert np.array_equal(data[0][1], np.asarray(nearest))
    (tmp_path / f"pseudo/{names[1]}.png").unlink()
    with pytest.raises(ValueError, match=f"pseudo: must hold a label map for each of 4 names, got none for {names[1]}"):
        open_full("cityscapes", tmp_path / "cs", labels=tmp_path / "pseudo")
    with pytest.raises(ValueError, match="labels: must not be given where labels are not to be read"):
        open_full("cityscapes", tmp_path / "cs", labels=tmp_path / "pseudo", labelled=False)


def test_pseudo_labels_serve_streets_too(tmp_path):
    for name in open_dataset("streets", None, "train", SIZE).names:
        save(tmp_path / f"{name}.png", ids_map([4], SIZE))
    data = open_dataset("streets", None, "train", SIZE, labels=tmp_path)
    assert data[5][1].unique().tolist() == [4]
