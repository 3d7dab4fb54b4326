"""Data sets: what comes out equals Pillow's own resizing and the id tables; every bad input names its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simfast.config.classes import CITYSCAPES
from simfast.data import open_dataset, streets
from simfast.data.classes import coding_of, colourise, palette, read_ids
from simfast.data.dataset import require_complete
from simfast.data.folder import open_pairs

SIZE = (12, 9)
CODING = coding_of("folder", CITYSCAPES)
PARTS = {"source": 240, "train": 120, "test": 60}


def write_pair(folder, name, label=None, image=None, suffix=".png"):
    """An image and its label map of 20x14, in folder/images and folder/labels."""
    rng = np.random.default_rng(len(name))
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    label = rng.integers(0, 19, (14, 20), np.uint8) if label is None else label
    image = rng.integers(0, 256, (14, 20, 3), np.uint8) if image is None else image
    Image.fromarray(image).save(folder / "images" / f"{name}{suffix}")
    Image.fromarray(label).save(folder / "labels" / f"{name}.png")


@pytest.fixture
def pair(tmp_path):
    """A folder of two pairs, `a` and `b`."""
    write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", suffix=".JPG")
    return tmp_path


def open_pair(folder, **options):
    return require_complete(open_pairs(folder / "images", folder / "labels", SIZE, CODING, **options))


# --- classes ---------------------------------------------------------------------------------------------------------


def test_stuff_and_things_are_all_classes():
    assert sorted(CITYSCAPES.stuff + CITYSCAPES.things) == list(range(len(CITYSCAPES)))
    assert [CITYSCAPES.names[i] for i in CITYSCAPES.stuff] == [
        *("road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky")
    ]


def test_remap_turns_camvid_ids_into_train_ids():
    raw = np.array([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]], np.uint8)  # sky building pole road pavement tree ...
    assert coding_of("camvid", CITYSCAPES).remap(raw, Path("x")).tolist() == [
        [10, 2, 5, 0, 1, 8],
        [7, 4, 13, 11, 12, 255],
    ]


def test_remap_names_the_file_the_ids_and_the_rule():
    with pytest.raises(ValueError, match=r"here/a\.png: label ids must be among 0-11, got 200 at .*, 12 at"):
        coding_of("camvid", CITYSCAPES).remap(np.array([[0, 200, 12, 11]], np.uint8), Path("here/a.png"))


def test_colourise_paints_cityscapes_colours_and_black_for_nothing():
    picture = colourise(np.array([[0, 13], [255, 19]], np.uint8), CITYSCAPES)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[128, 64, 128], [0, 0, 142]], [[0, 0, 0], [0, 0, 0]]]
    assert len({tuple(colour) for colour in palette(CITYSCAPES)[:19].tolist()}) == 19


# --- a folder --------------------------------------------------------------------------------------------------------


def test_items_equal_pillow_bicubic_and_nearest(pair):
    image, label, name = open_pair(pair)[0]
    raw_image, raw_label = Image.open(pair / "images/a.png"), Image.open(pair / "labels/a.png")
    expected = np.asarray(raw_image.resize(SIZE, Image.Resampling.BICUBIC))
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert np.array_equal(label, np.asarray(raw_label.resize(SIZE, Image.Resampling.NEAREST)))
    assert (image.dtype, label.dtype, name) == (torch.uint8, torch.uint8, "a")
    assert np.array_equal(open_pair(pair, resize_labels=False)[0][1], np.asarray(raw_label))


def test_labels_that_may_not_be_used_are_not_read(pair):
    (pair / "labels/a.png").write_bytes(b"not a picture")
    images = open_pairs(pair / "images", None, SIZE, CODING)
    assert images.names == ["a", "b"]
    assert images[0][1].shape == (0,)


def test_palette_labels_give_indices_and_a_label_of_no_image_is_passed_over(pair):
    index = Image.fromarray(np.full((14, 20), 13, np.uint8))
    index.putpalette(palette(CITYSCAPES).tobytes())
    index.save(pair / "labels/a.png")
    Image.new("L", (3, 3), 77).save(pair / "labels/extra.png")
    data = open_pair(pair)
    assert data.names == ["a", "b"]
    assert data[0][1].unique().tolist() == [13]


def test_grey_and_transparent_images_come_as_rgb(tmp_path):
    write_pair(tmp_path, "grey", image=np.full((14, 20), 9, np.uint8))
    write_pair(tmp_path, "transparent", image=np.full((14, 20, 4), 9, np.uint8))
    for image, _, _ in open_pair(tmp_path):
        assert image.unique().tolist() == [9]
        assert image.shape == (3, 9, 12)


def test_class_ids_are_those_that_can_occur(pair):
    assert open_pair(pair).class_ids == tuple(range(19))
    assert coding_of("folder", CITYSCAPES, {7: 11, 3: 0, 9: 255}).class_ids == (0, 11)
    assert coding_of("synthia", CITYSCAPES).class_ids == CITYSCAPES.sets["16"]


def break_label_missing(pair):
    (pair / "labels/b.png").unlink()


def break_image_folder(pair):
    (pair / "images").rename(pair / "elsewhere")


def break_label_folder(pair):
    (pair / "labels").rename(pair / "elsewhere")


def break_empty(pair):
    for path in (pair / "images").iterdir():
        path.unlink()


def break_twice(pair):
    write_pair(pair, "a", suffix=".bmp")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (break_label_missing, {}, r"images/b\.JPG: must have a label map, got no .*labels/b\.png"),
        (break_image_folder, {}, r"images: must be a folder, got nothing there"),
        (break_label_folder, {}, r"labels: must be a folder, got nothing there"),
        (break_empty, {}, r"images: must hold an image \(\.png .*\), got none"),
        (break_twice, {}, r"images/a\.png: must be the only a beside its suffix, got a\.bmp too"),
    ],
)
def test_a_bad_folder_is_named_before_training(spoil, options, message, pair):
    spoil(pair)
    with pytest.raises(ValueError, match=message):
        open_pair(pair, **options)


def break_truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def break_garbage(path):
    path.write_bytes(b"not a picture")


def break_gone(path):
    path.unlink()


def break_size(path):
    Image.new("L", (20, 15)).save(path)


def break_colour(path):
    Image.new("RGB", (20, 14), (1, 2, 3)).save(path)


def break_deep(path):
    Image.fromarray(np.full((14, 20), 256, np.uint16)).save(path)


def break_id(path):
    label = np.zeros((14, 20), np.uint8)
    label[13, 19] = 33  # a pixel that nearest resizing drops
    Image.fromarray(label).save(path)


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("images", break_truncated, "must be a readable picture"),
        ("images", break_garbage, "must be a readable picture"),
        ("images", break_gone, "must be a readable picture"),
        ("labels", break_truncated, "must be a readable picture"),
        ("labels", break_garbage, "must be a readable picture"),
        ("labels", break_size, "a label map must have its image's size 20x14, got 20x15"),
        ("labels", break_colour, r"label colours must be among the 29 of the class list cityscapes, got \(1, 2, 3\)"),
        ("labels", break_deep, "label ids must be among 0-18, 255, got 256"),
        ("labels", break_id, "label ids must be among 0-18, 255, got 33"),
    ],
)
def test_a_bad_file_is_named_when_it_is_read(kind, spoil, message, pair):
    data = open_pair(pair)
    spoil(pair / kind / "a.png")
    with pytest.raises(ValueError, match=rf"{kind}/a\.png: {message}"):
        data[0]
    assert data[1][2] == "b"


def test_a_truncated_jpeg_is_an_error_not_a_grey_picture(tmp_path):
    write_pair(tmp_path, "a", suffix=".jpg")
    path = tmp_path / "images/a.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"images/a\.jpg: must be a readable picture"):
        open_pair(tmp_path)[0]


# --- by name ---------------------------------------------------------------------------------------------------------


def test_camvid_is_read_with_its_own_ids_and_eleven_classes(tmp_path):
    raw = np.arange(12, dtype=np.uint8).repeat(20).reshape(12, 20)
    write_pair(tmp_path / "val", "a", raw, np.zeros((12, 20, 3), np.uint8))
    data = open_dataset("camvid", tmp_path, "val", SIZE, resize_labels=False)
    assert data[0][1][:, 0].tolist() == [10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, 255]
    assert data.class_ids == (0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_folder_takes_an_id_map_from_a_file(suffix, pair):
    ids = {raw: raw % 3 for raw in range(19)}
    path = pair / f"ids{suffix}"
    path.write_text(json.dumps(ids) if suffix == ".json" else "\n".join(f"{k}: {v}" for k, v in ids.items()))
    assert read_ids(path, CITYSCAPES) == ids
    data = open_dataset("folder", pair, "train", SIZE, resize_labels=False, ids=path)
    assert np.array_equal(data[0][1], np.asarray(Image.open(pair / "labels/a.png")) % 3)
    assert data.class_ids == (0, 1, 2)


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{1: street}", "{1: 2", "", '{"a": 1}', "{0: 40}", "{65536: 1}", "{0: 1, 0: 2}"]
)
def test_a_bad_id_map_is_named(content, tmp_path):
    (tmp_path / "ids.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"ids\.yaml: "):
        read_ids(tmp_path / "ids.yaml", CITYSCAPES)


def test_a_folder_without_splits_is_for_training_alone(pair):
    assert len(open_dataset("folder", pair, "train", SIZE)) == 2
    with pytest.raises(ValueError, match=r"val: must hold the split 'val' as images/ and labels/, got nothing there"):
        open_dataset("folder", pair, "val", SIZE)
    write_pair(pair / "val", "c")
    assert open_dataset("folder", pair, "val", SIZE).names == ["c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gta", None, "train", SIZE), "name: must be one of streets, camvid, folder, gta5, .*, got 'gta'"),
        (("streets", Path("x"), "train", SIZE), "root: streets is embedded and takes none, got x"),
        (("streets", None, "val", SIZE), "streets: split must be one of source, train, test, got 'val'"),
        (("camvid", Path("."), "testing", SIZE), "camvid: split must be one of train, val, test, got 'testing'"),
        (("camvid", None, "train", SIZE), "root: camvid needs the folder that it is in .*, got none"),
        (("folder", Path("no/such"), "train", SIZE), "no/such: must be the folder of data set 'folder', got nothing"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(*arguments)


def test_an_id_map_for_a_set_that_has_its_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ids: camvid has its own id map and takes none"):
        open_dataset("camvid", tmp_path, "train", SIZE, ids=tmp_path / "ids.yaml")


# --- streets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", PARTS)
def test_streets_are_complete(split):
    """Counts, sizes and label alphabet of a part; and every class often enough to be scored."""
    data = open_dataset("streets", None, split, (320, 240), resize_labels=False)
    assert len(data) == PARTS[split]
    pictures = np.zeros(256, int)
    for image, label, name in data:
        assert image.shape == (3, 240, 320), name
        assert label.shape == (240, 320), name
        assert image.numpy().std() > 10, name
        pictures += np.bincount(label.flatten(), minlength=256) >= 50
    assert set(np.flatnonzero(pictures)) == set(data.class_ids) == set(range(19)) - {16}
    assert pictures[list(data.class_ids)].min() >= PARTS[split] / 4


def test_streets_of_two_parts_are_never_the_same():
    names = [name for split in PARTS for name in open_dataset("streets", None, split, SIZE).names]
    assert len(set(names)) == len(names) == sum(PARTS.values())
    labels = Path(streets.__file__).parent.glob("*/labels/*.png")
    assert len({path.read_bytes() for path in labels}) == len(names)


def test_streets_stay_small():
    files = Path(streets.__file__).parent.rglob("*")
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 8e6
