"""check-data: all that is wrong with a data set at once, and which classes its labels hold."""

import pytest
from trees import ids_map, make_cityscapes, make_gta5, make_synthia, picture, save

from simfast.config.classes import CITYSCAPES
from simfast.data import open_dataset
from simfast.data.check import check_data, check_part, report_text
from simfast.data.prepare import prepare

SIZE = (20, 14)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_file_is_told_once(workers, tmp_path):
    make_gta5(tmp_path, count=40)
    spoiled = {"images/00003.png": b"", "labels/00003.png": b"x", "labels/00017.png": None, "images/00030.png": b"y"}
    for name, content in spoiled.items():
        (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    save(tmp_path / "labels/00031.png", ids_map([7, 200]))
    save(tmp_path / "labels/00032.png", picture(0))
    report = check_part("gta5", tmp_path, "train", SIZE, workers)
    assert report.images == 40
    expected = [
        *("images/00017.png: must have a label map", "images/00003.png: must be a readable picture"),
        *("labels/00003.png: must be a readable picture", "images/00030.png: must be a readable picture"),
        *(
            "labels/00031.png: label ids must be among 0-34, got 200",
            "labels/00032.png: a label map must hold ids",
        ),
    ]
    assert [
        problem.removeprefix(f"{tmp_path}/")[: len(text)]
        for problem, text in zip(report.problems, expected, strict=True)
    ] == expected


def test_a_label_of_another_size_is_told_where_the_set_asks_for_the_same(tmp_path):
    make_cityscapes(tmp_path, ("val",))
    path = tmp_path / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
    save(path, ids_map([7], (31, 16)))
    (problem,) = check_part("cityscapes", tmp_path, "val", SIZE, 0, resize_labels=False).problems
    assert problem == f"{path}: a label map must have its image's size 32x16, got 31x16"


def test_what_keeps_a_set_from_opening_is_a_problem(tmp_path):
    report = check_part("cityscapes", tmp_path, "val", SIZE, 0)
    assert (report.images, report.problems) == (
        0,
        [f"{tmp_path}/leftImg8bit/val: must be a folder with one of each city, got nothing there"],
    )


def test_pixels_of_each_class_are_counted_and_absent_ones_stand_out(tmp_path):
    make_synthia(tmp_path, count=20, ids=[3, 3, 8, 0])
    report = check_part("synthia", tmp_path, "train", SIZE, 0)
    assert report.problems == []
    assert {i: int(n) for i, n in enumerate(report.pixels) if n} == {0: 20 * 140, 13: 20 * 70, 255: 20 * 70}
    lines = report_text({"source": report}, CITYSCAPES).splitlines()
    assert lines[0] == "source: 20 images, no problem"
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in lines[4:]}
    assert {name: rows[name] for name in ("road", "car", "bus", "train", "don't care")} == {
        **{"road": "50.000", "car": "25.000", "bus": "none", "train": "-", "don't care": "25.000"}
    }


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    make_gta5(tmp_path, count=5)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    text = report_text({"source": check_part("gta5", tmp_path, "train", SIZE, 0, labelled=False)}, CITYSCAPES, most=2)
    assert text.startswith("source: 5 images, problems: 5\n")
    assert text.endswith("... and 3 more")
    assert "pixels" not in text


def test_a_cache_is_checked_by_its_sums(tmp_path):
    make_gta5(tmp_path / "gta5")
    folder = prepare(open_dataset("gta5", tmp_path / "gta5", "train", SIZE), tmp_path / "cache", 0)
    data = open_dataset("gta5", tmp_path / "gta5", "train", SIZE, cache=tmp_path / "cache")
    assert check_data(data, 0).problems == []
    path = folder / "images-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    (problem,) = check_data(data, 0).problems
    assert problem.startswith(f"{path}: its checksum")
