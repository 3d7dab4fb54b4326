"""What a data set probably does not mean to hold: a warning for each kind, with a file's name and what mends it."""

import cv2
import numpy as np
import pytest
from PIL import Image
from trees import make_cityscapes, picture, save

from simfast.cli import call
from simfast.config.classes import classes_of
from simfast.data import open_dataset
from simfast.data.check import check_part
from simfast.data.streets import SPLITS

SIZE = (64, 48)
LABEL_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)


def scene(seed, shape=(96, 128)):
    """Train ids of a street: sky over building over road, with cars, people and poles as thin as a pixel."""
    rng, (height, width) = np.random.default_rng(seed), shape
    label = np.zeros(shape, np.uint8)
    label[: height // 2], label[: height // 3] = 2, 10
    for train, least, most in ((13, 8, 20), (11, 3, 6), (5, 1, 2), (5, 1, 2)):
        x, wide = rng.integers(0, width - 20), rng.integers(least, most)
        label[height // 3 + 5 : 2 * height // 3, x : x + wide] = train
    return label


def found(root, labels, data_set="folder", images=None, **options):
    """`check_part` of a data set with these label maps, and images of noise or the ones given."""
    for i, label in enumerate(labels):
        label = label if isinstance(label, Image.Image) else Image.fromarray(label)
        save(root / f"labels/{i:04d}.png", label)
        save(root / f"images/{i:04d}.png", picture(i, label.size) if images is None else images[i])
    return check_part(data_set, root, "train", SIZE, 0, **options)


def warning(root, *arguments, **options):
    """The only warning, with no problem beside it."""
    report = found(root, *arguments, **options)
    assert report.problems == []
    (text,) = report.warnings
    return text.replace(f"{root}/", "")


def test_clean_data_get_no_warning(tmp_path):
    assert found(tmp_path / "a", [scene(i) for i in range(4)]).warnings == []
    raw = np.array([*LABEL_IDS], np.uint8)
    assert found(tmp_path / "b", [raw[scene(i)] for i in range(4)], "gta5").warnings == []
    for split in SPLITS:
        assert check_part("streets", None, split, SIZE, 0).warnings == []


def test_two_classes_of_which_one_is_read_as_dont_care(tmp_path):
    text = warning(tmp_path, [np.where(scene(i) == 13, 255, 0).astype(np.uint8) for i in range(3)])
    assert text.startswith("labels: road is the only class in 3 label maps, such as labels/000")
    assert "255 is read as don't care" in text
    assert "--source-ids FILE with {0: 0, 255: 1} or --classes FILE" in text
    (tmp_path / "ids.yaml").write_text("{0: 0, 255: 1}")
    mended = check_part("folder", tmp_path, "train", SIZE, 0, ids=tmp_path / "ids.yaml")
    assert (mended.problems, mended.warnings) == ([], [])


def test_more_dont_care_than_classes(tmp_path):
    labels = [scene(i) for i in range(3)]
    for label, rows in zip(labels, (48, 72, 60), strict=True):
        label[:rows] = 255
    text = warning(tmp_path, labels)
    expected = "labels: 62% of the pixels are don't care (in the files 255), most in labels/0001.png (75%); "
    assert text == expected + "if they are classes, --source-ids FILE or --classes FILE names them"


def test_what_a_list_that_ignores_others_makes_nothing_of(tmp_path):
    entries = [("a", 7), ("b", 11), ("c", 26)]
    listed = [{"name": name, "colour": [raw] * 3, "kind": "stuff", "ids": [raw]} for name, raw in entries]
    classes = classes_of({"classes": listed, "other": "ignore"})
    label = np.repeat(np.array([7, 11, 26, 7], np.uint8), 12)[:, None].repeat(64, 1)
    assert found(tmp_path / "right", [label] * 3, classes=classes).warnings == []
    text = warning(tmp_path / "one", [label, label, label // 7 * 3], classes=classes)
    assert text.startswith(
        "labels: 1 of 3 label maps hold don't care alone, such as labels/0002.png; by its `other: ig"
    )
    text = warning(tmp_path / "class", [np.where(label == 26, 27, label)] * 3, classes=classes)
    assert text.startswith(
        "labels: c in none of 3 label maps, and 25% of the pixels are don't care, most in labels/0000"
    )


def test_all_dont_care_is_a_problem_of_what_is_trained_on_and_a_pity_of_what_is_scored(tmp_path):
    report = found(tmp_path, [np.full((48, 64), 255, np.uint8)] * 2)
    assert report.warnings == []
    (text,) = report.problems
    assert text.startswith(f"{tmp_path}/labels: a label map must have a pixel of some class, got don't care alone")
    assert "(they hold 255), such as" in text
    report = check_part("folder", tmp_path, "train", SIZE, 0, part="held-out")
    assert (report.problems, report.warnings) == ([], [text.replace("--source-ids", "--target-ids")])


@pytest.mark.parametrize("void", [False, True])
def test_train_ids_where_those_of_a_published_set_are_expected(void, tmp_path, capsys):
    """A published set takes an id map only beside a list of the user's: what is said is done, and does it."""
    labels = [scene(i) for i in range(3)]
    for label in labels if void else ():
        label[-4:] = 255
    report = found(tmp_path, labels, "gta5")
    (text,) = report.warnings
    assert text.startswith(f"{tmp_path}/labels: ids look like train ids: all are within 0-18, and ")
    assert "such as in " in text
    advice = " FILE{} beside --classes COPY (a file of what `simfast classes cityscapes` prints; "
    example = " with {0: 0, 1: 1, ... 18: 18, 255: 255}"
    assert f"if so, --source-ids{advice.format(example)}" in text
    assert len(report.problems) == (3 if void else 0)
    assert all(f"--source-ids or --target-ids{advice.format('')}" in problem for problem in report.problems)

    capsys.readouterr()
    call(["classes", "cityscapes"])
    copy, ids = tmp_path / "copy.yaml", tmp_path / "ids.yaml"
    copy.write_text(capsys.readouterr().out)
    ids.write_text("".join(f"{i}: {i}\n" for i in (*range(19), 255)))
    make_cityscapes(tmp_path / "target")
    said = ["--source-ids", str(ids), "--classes", str(copy)]
    roots = ["--source-root", str(tmp_path), "--target-root", str(tmp_path / "target")]
    assert call(["check-data", "--preset", "gta5", "--workers", "0", *roots, *said]) == 0
    checked = capsys.readouterr().out
    assert "source: 3 images, no problem\n" in checked
    assert "held-out: 4 images, no problem\n" in checked
    mended = open_dataset("gta5", tmp_path, "train", (128, 96), classes=classes_of(copy), ids=ids)
    assert all(np.array_equal(mended.label(i), label) for i, label in enumerate(labels))


def test_ids_of_a_published_set_where_train_ids_are_expected(tmp_path):
    report = found(tmp_path, [np.array(LABEL_IDS, np.uint8)[scene(i)] for i in range(3)])
    assert len(report.problems) == 3  # ids over 18
    (text,) = report.warnings
    assert "ids look like those of cityscapes where train ids are expected" in text
    assert "--source-ids FILE with {7: road, 11: building, 17: pole, 23: sky, 24: person, 26: car}" in text


def test_ids_of_other_classes_put_the_sky_under_the_road(tmp_path):
    camvid = np.zeros(256, np.uint8)
    camvid[[10, 2, 5, 0, 13, 11]] = 0, 1, 2, 3, 8, 9
    text = warning(tmp_path, [np.where(scene(i) == 11, 10, camvid[scene(i)]).astype(np.uint8) for i in range(3)])
    assert text.startswith("labels: what is read as sky lies below what is read as road, such as in labels/000")


@pytest.mark.parametrize("how", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA])
def test_labels_that_were_resized_with_interpolation(how, tmp_path):
    streets = open_dataset("streets", None, "source", SIZE)
    labels = [np.asarray(Image.open(streets.labels[i])) for i in range(4)]
    small = [cv2.resize(label, (160, 120), interpolation=how).clip(0, 18) for label in labels]
    text = warning(tmp_path / "small", small)
    assert "ids that lie between those of their neighbours follow the borders" in text
    assert "in 4 of 4 label maps" in text
    nearest = [cv2.resize(label, (160, 120), interpolation=cv2.INTER_NEAREST) for label in labels]
    assert found(tmp_path / "nearest", nearest).warnings == []


def test_a_class_that_outlines_another_is_none_that_interpolation_made(tmp_path):
    disc = cv2.circle(np.zeros((96, 128), np.uint8), (60, 50), 40, 13, -1)
    assert found(tmp_path, [cv2.circle(disc.copy(), (60, 50), 40, 5, 1)] * 2).warnings == []


def test_palettes_that_contradict_each_other(tmp_path):
    labels = [Image.fromarray(scene(i)) for i in range(3)]
    for label, red in zip(labels, (1, 1, 2), strict=True):
        label.putpalette([red, 0, 0] * 256)
    text = warning(tmp_path, labels)
    assert text.startswith("labels/0002.png: its palette paints id 0 (2, 0, 0), that of labels/0000.png (1, 0, 0)")
    assert text.endswith("if the colours are the classes and not the ids, --classes FILE with `colours` says so")


def test_colours_of_a_published_set_count_where_it_is_read_as_a_folder(tmp_path):
    labels = [Image.fromarray(scene(i)) for i in range(3)]
    for label, red in zip(labels, (1, 2, 2), strict=True):
        label.putpalette([red, 0, 0] * 256)
    text = found(tmp_path, labels, "gta5").warnings[-1]
    assert text.endswith("--source folder --classes FILE with `colours` says so")
    listed = [{"name": name, "colour": [red, 0, 0], "kind": "stuff"} for name, red in (("a", 1), ("b", 2))]
    data = open_dataset("folder", tmp_path, "train", SIZE, classes=classes_of({"classes": listed}))
    assert [data.label(i).unique().tolist() for i in range(3)] == [[0], [1], [1]]


def test_images_that_read_as_one_colour(tmp_path):
    labels = [scene(i) for i in range(3)]
    images = [picture(0, (128, 96)), Image.new("RGB", (128, 96), (3, 3, 3)), picture(2, (128, 96))]
    text = warning(tmp_path, labels, images=images)
    assert text.startswith("images/0001.png: has one colour all over (1 of 3 images have)")


def test_label_maps_that_are_constant_each(tmp_path):
    text = warning(tmp_path, [np.full((48, 64), i, np.uint8) for i in (11, 13, 13)])
    assert text.startswith("labels: each of 3 label maps has one value all over, such as labels/0000.png")


def test_transferred_images_of_another_shape(tmp_path):
    for i, size in enumerate([(64, 48), (48, 64), (60, 48)]):
        save(tmp_path / f"other/{i:04d}.png", picture(i, size))
    found(tmp_path, [scene(i) for i in range(3)])
    report = check_part("folder", tmp_path, "train", SIZE, 0, images=tmp_path / "other")
    (text,) = report.warnings
    assert text.startswith(f"{tmp_path}/labels/0001.png: is 128x96, and 48x64 its image {tmp_path}/other/0001.png")
    assert "2 of 3 label maps differ" in text


def test_a_users_own_classes_are_named(tmp_path):
    colours = {"field": [10, 20, 30], "track": [200, 0, 0]}
    classes = classes_of({"classes": [{"name": name, "colour": c, "kind": "stuff"} for name, c in colours.items()]})
    label = np.zeros((48, 64, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    text = warning(tmp_path, [label, label], classes=classes)
    expected = "labels: field is the only class in 2 label maps; if there are more, "
    assert text == expected + "--source-ids FILE or --classes FILE names them"
