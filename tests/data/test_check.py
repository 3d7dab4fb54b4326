"""check-data: all that is wrong with a data set at once, and which classes its labels hold."""

import pytest
from trees import ids_map, make_cityscapes, make_gta5, make_synthia, picture, save

from simfast.config.classes import CITYSCAPES
from simfast.data import check, open_dataset
from simfast.data.check import check_data, check_part, check_sample, report_text
from simfast.data.inspection import inspect
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
    assert lines[-1] == "none: not one pixel; -: a class that these labels do not have"


def test_a_fault_of_many_files_is_told_once(tmp_path):
    make_gta5(tmp_path, count=9)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    report = check_part("gta5", tmp_path, "train", SIZE, 0, labelled=False)
    assert len(report.problems) == 9
    first, sentence, others = report_text({"source": report}, CITYSCAPES).splitlines()
    assert first == "source: 9 images, problems: 9"
    assert sentence.startswith(f"  {tmp_path}/images/00001.png: must be a readable picture")
    assert others == "    the same of 8 more: 00002.png, 00003.png, 00004.png, 00005.png, 00006.png ..."


def test_a_fault_that_lies_elsewhere_in_each_file_is_told_once(tmp_path):
    make_gta5(tmp_path, count=3)
    for i, path in enumerate(sorted((tmp_path / "labels").iterdir())):
        save(path, ids_map([7] * i + [100, 7]))
    text = report_text({"source": check_part("gta5", tmp_path, "train", SIZE, 0)}, CITYSCAPES)
    assert text.count("100 at (x, y) = ") == 1
    assert "the same of 2 more: 00002.png, 00003.png" in text


def test_label_maps_that_are_not_there_are_told_once(tmp_path):
    for i in range(4):
        save(tmp_path / f"images/{i}.png", picture(i))
    save(tmp_path / "labels/0.png", ids_map([0, 1]))
    text = report_text({"source": check_part("folder", tmp_path, "train", SIZE, 0)}, CITYSCAPES)
    assert text.count("must have a label map") == 1
    assert "the same of 2 more: 2.png, 3.png\n" in text


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    make_gta5(tmp_path, count=5)
    for i, path in enumerate(sorted((tmp_path / "labels").iterdir())):
        save(path, ids_map([7, 100 + i // 2]))
    text = report_text({"source": check_part("gta5", tmp_path, "train", SIZE, 0)}, CITYSCAPES, most=2)
    assert text.startswith("source: 5 images, problems: 5\n")
    assert [line.strip()[:12] for line in text.splitlines()[2:6:2]] == ["the same of ", "the same of "]
    assert text.splitlines()[5] == "  ... and 1 more"


def test_a_cache_is_checked_by_its_sums(tmp_path):
    make_gta5(tmp_path / "gta5")
    folder = prepare(open_dataset("gta5", tmp_path / "gta5", "train", SIZE), tmp_path / "cache", 0)
    data = open_dataset("gta5", tmp_path / "gta5", "train", SIZE, cache=tmp_path / "cache")
    assert check_data(data, 0).problems == []
    path = folder / "images-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    (problem,) = check_data(data, 0).problems
    assert problem.startswith(f"{path}: its checksum")


def test_what_one_domain_alone_labels_is_told_below_the_table(tmp_path):
    make_gta5(tmp_path / "source", ids=(7, 8, 11, 34, 0))
    make_cityscapes(tmp_path / "target", ("val",), ids=(7, 11, 26, 27, 0))
    reports = {
        "source": check_part("gta5", tmp_path / "source", "train", SIZE, 0),
        "target": check_part("cityscapes", tmp_path / "target", "val", SIZE, 0, part="target", labelled=False),
        "held-out": check_part("cityscapes", tmp_path / "target", "val", SIZE, 0, part="held-out"),
    }
    assert report_text(reports, CITYSCAPES).splitlines()[-3:] == [
        "",
        "labelled in the source alone, never in the target's labels: sidewalk",
        "labelled in the target alone, never in the source's labels: car, truck",
    ]
    assert "labelled in" not in report_text({"source": reports["source"], "target": reports["target"]}, CITYSCAPES)


def test_a_warning_stands_under_its_part(tmp_path):
    make_gta5(tmp_path, ids=(7, 0))
    text = report_text({"source": check_part("gta5", tmp_path, "train", SIZE, 0)}, CITYSCAPES)
    first, second = text.splitlines()[:2]
    assert first == "source: 3 images, no problem, warnings: 1"
    assert second.startswith(f"  warning: {tmp_path}/labels: road is the only class in 3 label maps")


def test_a_cache_is_suspected_of_what_can_be_seen_in_it(tmp_path):
    for i in range(3):
        save(tmp_path / f"data/images/{i}.png", ids_map([5, 5, 5]))
        save(tmp_path / f"data/labels/{i}.png", ids_map([0, 255]))
    prepare(open_dataset("folder", tmp_path / "data", "train", SIZE), tmp_path / "cache", 0)
    report = check_part("folder", tmp_path / "data", "train", SIZE, 0, cache=tmp_path / "cache")
    assert report.problems == []
    one_class, constant = report.warnings
    assert one_class.startswith(str(tmp_path / "cache"))
    assert "road is the only class in 3 label maps" in one_class
    assert "0: has one colour all over (3 of 3 images have)" in constant


def test_a_sample_is_spread_evenly_and_looks_further_for_a_class(tmp_path, monkeypatch):
    for i in range(100):
        save(tmp_path / f"images/{i:02d}.png", picture(i))
        save(tmp_path / f"labels/{i:02d}.png", ids_map([0, 13] if i == 77 else [255]))
    data, read = open_dataset("folder", tmp_path, "train", SIZE), []
    monkeypatch.setattr(check, "inspect", lambda data, i, **what: read.append((i, what)) or inspect(data, i, **what))
    report = check_sample(data, "source", 60)
    assert report.problems == []
    sample = sorted(i for i, what in read if what.get("image", True))
    assert len(sample) == 32
    assert max(b - a for a, b in zip(sample, [*sample[1:], 100], strict=True)) <= 4
    assert read[-1] == (77, {"image": False})
    assert check_sample(data, "source", 60, labels=False).pixels is None
    save(tmp_path / "labels/77.png", ids_map([255]))
    (problem,) = check_sample(data, "source", 0).problems
    assert "don't care alone in all 100" in problem


def test_a_sample_ends_with_its_time(tmp_path):
    make_gta5(tmp_path, count=20)
    assert check_sample(open_dataset("gta5", tmp_path, "train", SIZE), "source", 0).pixels.sum() == SIZE[0] * SIZE[1]
