"""Folders as people have them: which pictures are an item each, under what name, and where their labels are."""

import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from trees import label_maps, opened, paths, pictures, save

from simfast.data import open_dataset
from simfast.data.cache import fingerprint, part_name
from simfast.data.dataset import Description
from simfast.data.prepare import prepare

# --- where images lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", "train/"])
def test_names_are_paths_without_suffix_and_labels_lie_under_the_same(part, tmp_path):
    pictures(tmp_path, f"{part}images/zurich/0001.jpg", f"{part}images/aachen/b/0001.png", f"{part}images/0002.bmp")
    label_maps(tmp_path, *(f"{part}labels/{name}.png" for name in ("zurich/0001", "aachen/b/0001", "0002")))
    data = opened(tmp_path)
    assert data.names == ["0002", "aachen/b/0001", "zurich/0001"]
    assert paths(data, tmp_path)[2] == (f"{part}images/zurich/0001.jpg", f"{part}labels/zurich/0001.png")
    assert data[1][2] == "aachen/b/0001"


def test_a_flat_folder_is_in_the_order_of_names_without_suffix(tmp_path):
    files = ["a.b.png", "a.png", "a-1.JPG", "A.bmp", "b.webp"]
    pictures(tmp_path, *(f"images/{file}" for file in files))
    expected = sorted(files, key=lambda file: (file.rpartition(".")[0], file))
    assert [file.name for file in opened(tmp_path, labelled=False).images] == expected


@pytest.mark.parametrize("folder", ["photos", "photos/train", "photos/train/images"])
def test_an_unlabelled_domain_may_be_a_bare_folder_of_photographs(folder, tmp_path):
    pictures(tmp_path / folder, "0001.jpg", "monday/0002.jpg")
    data = opened(tmp_path / "photos", labelled=False)
    assert data.names == ["0001", "monday/0002"]
    assert data[1][1].shape == (0,)


def test_a_bare_folder_needs_to_be_told_where_its_labels_are(tmp_path):
    pictures(tmp_path, "0001.jpg")
    with pytest.raises(ValueError, match=r"images: must be a folder, got nothing there; label_files \(--source-labels"):
        opened(tmp_path)


def test_pictures_beside_the_folder_of_images_are_passed_over(tmp_path):
    pictures(tmp_path, "images/a.png", "cover.png", "readme.jpg")
    data = opened(tmp_path, labelled=False)
    assert data.names == ["a"]
    assert data.passed_over == (f"{tmp_path}: pictures beside images/ are passed over (2, such as cover.png)",)


def test_no_label_and_no_held_out_picture_of_a_bare_root_is_trained_on(tmp_path):
    pictures(tmp_path, "a.jpg", "east/images/b.jpg", "val/c.jpg", "test/images/d.jpg")
    label_maps(tmp_path, "labels/a.png", "east/labels/b.png")
    data = opened(tmp_path, labelled=False)
    assert data.names == ["a", "east/images/b"]
    assert opened(tmp_path, "val", labelled=False).names == ["c"]
    assert data.passed_over == (
        f"{tmp_path}: folders of label maps are passed over (2, such as east/labels)",
        f"{tmp_path}: folders that are held out are passed over (2, such as test)",
    )


def test_a_split_that_is_not_there_is_never_another_one(tmp_path):
    pictures(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"val: must hold the split 'val'"):
        opened(tmp_path, "val", labelled=False)


def test_what_is_passed_over_is_counted_with_an_example(tmp_path):
    pictures(tmp_path, "images/a.png", "images/.b.png", "images/.cache/c.png", "images/@eaDir/a.jpg/thumb.jpg")
    label_maps(tmp_path, "labels/a.png", "labels/x/b.png", "labels/c.png")
    for name in ("notes.md", "x/Thumbs.db"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_text("")
    data = opened(tmp_path)
    assert data.names == ["a"]
    suffixes, hidden, labels = data.passed_over
    assert hidden == f"{tmp_path}/images: hidden files or folders are passed over (3, such as .b.png)"
    assert suffixes.startswith(f"{tmp_path}/images: files of other suffixes than .png ")
    assert suffixes.endswith(" are passed over (2, such as notes.md)")
    assert labels == f"{tmp_path}/labels: label maps without an image are passed over (2, such as c.png)"


@pytest.mark.parametrize("suffixes", [("images/x/a.png", "images/x/a.jpg"), ("images/x/a.png", "images/x/a.BMP")])
def test_two_images_of_one_name_are_refused(suffixes, tmp_path):
    pictures(tmp_path, *suffixes)
    with pytest.raises(ValueError, match=r"must be the only x/a beside its suffix, got x/a\.\w+ too"):
        opened(tmp_path, labelled=False)


def test_links_to_folders_are_followed_and_a_loop_of_them_ends(tmp_path):
    pictures(tmp_path, "images/east/a.png", "elsewhere/b.png")
    for link, to in {"images/up": "images", "images/west": "elsewhere", "images/again": "images/east"}.items():
        (tmp_path / link).symlink_to(tmp_path / to, target_is_directory=True)
    (tmp_path / "images/itself").symlink_to("itself")
    data = opened(tmp_path, labelled=False)
    assert data.names == ["east/a", "west/b"]
    assert data.passed_over[1] == (f"{tmp_path}/images: links to folders met before are passed over (2, such as again)")


# --- names in Unicode ------------------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "münchen/brücke") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED])
def test_names_compare_however_their_characters_are_composed(written, tmp_path):
    other = DECOMPOSED if written == COMPOSED else COMPOSED
    pictures(tmp_path, f"images/{written}.jpg", f"transferred/{other}.png")
    label_maps(tmp_path, f"labels/{other}.png", f"pseudo/{other}.png", f"labels/{other}_L.png")
    assert opened(tmp_path).names == [COMPOSED]
    assert opened(tmp_path, label_files="{root}/labels/{name}_L.png")[0][1].unique().tolist() == [1, 2]
    assert opened(tmp_path, images=tmp_path / "transferred").problems == ()
    assert opened(tmp_path, labels=tmp_path / "pseudo")[0][1].unique().tolist() == [1, 2]
    (tmp_path / "list.txt").write_text(f"images/{other}.jpg labels/{written}.png")
    assert opened(tmp_path, "list.txt").names == [f"images/{COMPOSED}"]


def test_two_files_that_differ_in_composition_alone_are_one_name(tmp_path):
    pictures(tmp_path, f"images/{COMPOSED}.png", f"images/{DECOMPOSED}.png")
    if len(list((tmp_path / "images").iterdir())) == 1:
        pytest.skip("this file system composes names")
    with pytest.raises(ValueError, match="must be the only"):
        opened(tmp_path, labelled=False)


# --- where label maps lie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "image", "label"),
    [
        ("gt", "images/a/1.jpg", "gt/a/1.bmp"),
        ("labels", "a/1.jpg", "labels/a/1.png"),
        ("gt", "train/images/a/1.jpg", "train/gt/a/1.png"),
        ("gt", "train/a/1.jpg", "train/gt/a/1.png"),
        ("gt", "train/images/a/1.jpg", "gt/a/1.png"),
        ("{dir}/{stem}_L.png", "a/1.jpg", "a/1_L.png"),
        ("{dir}/{stem}_L.png", "images/a/1.png", "images/a/1_L.png"),
        ("{dir}/{stem}.png", "a/1.jpg", "a/1.png"),
        ("{dir}/../gt/{stem}.png", "images/a/1.jpg", "images/gt/1.png"),
        ("{dir}/{stem}.mask.png", "a/1.jpg", "a/1.mask.png"),
        ("{dir}/{stem}_L.bmp", "a/1.jpg", "a/1_L.png"),
        ("{root}/gt/{name}.png", "images/a/1.jpg", "gt/a/1.png"),
        ("gt/{parent}/x_{stem}.png", "images/a/1.jpg", "gt/a/x_1.png"),
        ("images -> gt", "images/a/1.jpg", "gt/a/1.png"),
        ("_rgb -> _ids", "a/1_rgb.png", "a/1_ids.png"),
        (
            "_leftImg8bit -> _gtFine_labelIds, leftImg8bit -> gtFine",
            "train/leftImg8bit/aachen/x_leftImg8bit.png",
            "train/gtFine/aachen/x_gtFine_labelIds.png",
        ),
        (".jpg->.png", "images/1.jpg", "images/1.png"),
        ("_rgb -> _ids, images -> gt", "a/1_rgb.png", "a/1_ids.png"),
    ],
)
def test_label_maps_are_found_by_folder_pattern_and_rules(pattern, image, label, tmp_path):
    pictures(tmp_path, image)
    label_maps(tmp_path, label)
    assert paths(opened(tmp_path, label_files=pattern), tmp_path) == [(image, label)]
    assert opened(tmp_path, labelled=False, label_files=pattern).names == opened(tmp_path, label_files=pattern).names


def test_a_folder_of_labels_may_be_anywhere(tmp_path, monkeypatch):
    pictures(tmp_path, "photos/a.jpg")
    label_maps(tmp_path, "mine/a.png")
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", str(tmp_path / "mine")):
        assert opened(tmp_path / "photos", label_files=folder)[0][1].unique().tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"thine: must be a folder, got nothing there; label_files \(--source-labels"):
        opened(tmp_path / "photos", label_files="thine")


def test_of_images_and_labels_in_one_folder_each_is_told_from_the_other(tmp_path):
    pictures(tmp_path, "1_rgb.png", "2_rgb.png", "2_colour.png")
    label_maps(tmp_path, "1_ids.png", "2_ids.png", "3_ids.png")
    data = opened(tmp_path, label_files="_rgb -> _ids")
    assert data.names == ["1_rgb", "2_rgb"]
    assert data.passed_over == (
        f"{tmp_path}: label maps of other pictures are passed over (2, such as 1_ids.png)",
        f"{tmp_path}: pictures to which '_rgb -> _ids' does not apply are passed over (2, such as 2_colour.png)",
    )


@pytest.mark.parametrize("pattern", ["gt", "_rgb -> _ids", "{root}/gt/{name}.png"])
def test_where_the_labels_of_another_part_are_does_not_matter_to_an_unlabelled_one(pattern, tmp_path):
    pictures(tmp_path, "train/a.jpg", "train/b.jpg", "val/images/c_rgb.png")
    label_maps(tmp_path, "val/gt/c_rgb.png")
    assert opened(tmp_path, labelled=False, label_files=pattern).names == ["a", "b"]


def test_an_image_without_a_label_is_a_problem_that_names_the_option(tmp_path):
    pictures(tmp_path, "images/a.png", "images/b.png")
    label_maps(tmp_path, "labels/a.png")
    with pytest.raises(ValueError, match=r"images/b\.png: must have a label map, got no .*labels/b\.png .*--target-l"):
        opened(tmp_path)
    assert len(opened(tmp_path, complete=False).problems) == 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{dir}/{stm}_L.png", r"must have no other fields than \{dir\}, \{stem\}, .* got \{stm\}"),
        ("", "must be a folder, a pattern or rules, got ''"),
        ("{}_L.png", r"must have no other fields than .* got \{\}"),
        ("{stem:>4}.png", "must have no other fields than"),
        ("{dir}/{stem_L.png", "braces must come in pairs"),
        ("{dir}/{stem}.png", r"must lead to a label map of its own for each image, got .*a\.png for itself"),
        ("{dir}/gt.png", r"got .*gt\.png for .*a\.png and for .*b\.png"),
        ("images -> images", r"got .*images/a\.png for itself"),
        ("imgs -> gt", r"'imgs -> gt' must apply to the path of an image, got .*images/a\.png"),
        ("images -> ", "must have a label map"),
        (" -> gt", r'a rule must be "A -> B"'),
        ("images -> gt -> ids", r'a rule must be "A -> B"'),
        ("images -> gt, ids", r'a rule must be "A -> B"'),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused_by_name(pattern, message, tmp_path):
    pictures(tmp_path, "images/a.png", "images/b.png")
    label_maps(tmp_path, "images/gt.png")
    with pytest.raises(ValueError, match=message) as caught:
        opened(tmp_path, label_files=pattern)
    assert "--source-labels" in str(caught.value)


def test_a_published_set_has_its_own_places(tmp_path):
    with pytest.raises(ValueError, match="label_files: gta5 has its own places"):
        open_dataset("gta5", tmp_path, "train", (20, 14), label_files="gt")


# --- a held-out set apart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["held", "held/images"])
@pytest.mark.parametrize("label_files", [None, "labels", "images -> labels", "{dir}/../labels/{stem}.png"])
def test_held_out_images_may_lie_apart(given, label_files, tmp_path):
    pictures(tmp_path, "held/images/a.jpg")
    label_maps(tmp_path, "held/labels/a.png")
    options = {"resize_labels": False, "image_files": tmp_path / given, "label_files": label_files}
    data = opened(None, **options)
    assert paths(data, tmp_path) == [("held/images/a.jpg", "held/labels/a.png")]
    prepare(data, tmp_path / "cache", 0)
    assert opened(None, **options, cache=tmp_path / "cache")[0][2] == "a"


@pytest.mark.parametrize(
    "rules",
    [
        "_leftImg8bit -> _gtFine_labelIds, leftImg8bit -> gtFine",
        "leftImg8bit -> gtFine, _gtFine -> _gtFine_labelIds",  # all of which apply to the file's name alone as well
    ],
)
def test_rules_reach_above_held_out_images_as_far_as_they_need(rules, tmp_path):
    pictures(tmp_path, "images/leftImg8bit/val/x/a_leftImg8bit.png")
    label_maps(tmp_path, "images/gtFine/val/x/a_gtFine_labelIds.png")
    data = opened(None, image_files=tmp_path / "images/leftImg8bit/val", label_files=rules)
    assert data.names == ["x/a_leftImg8bit"]


def test_held_out_images_stand_for_root_and_split(tmp_path):
    with pytest.raises(ValueError, match="image_files: stands for root and split"):
        opened(tmp_path, image_files=tmp_path)
    pictures(tmp_path, "a.png")
    with pytest.raises(ValueError, match="images: must be a folder, got nothing there"):
        opened(None, image_files=tmp_path / "images", label_files="{dir}/{stem}_L.png")


# --- caches ----------------------------------------------------------------------------------------------------------


def test_a_cached_part_is_told_from_one_by_another_pattern_and_keeps_nested_names(tmp_path):
    pictures(tmp_path, "images/x/a.jpg", "images/b.jpg")
    label_maps(tmp_path, "L/x/a.png", "L/b.png", ids=[1])
    label_maps(tmp_path, "M/x/a.png", "M/b.png", "M/c.png", ids=[2])
    (tmp_path / "list.txt").write_text("images/b.jpg\n")
    kinds = [("train", "L", 1), ("train", "M", 2), ("train", "images -> L", 1), ("list.txt", "images -> M", 2)]
    for split, pattern, _ in kinds:
        files = opened(tmp_path, split, label_files=pattern)
        prepare(files, tmp_path / "cache", 0)
        cached = opened(tmp_path, split, label_files=pattern, cache=tmp_path / "cache")
        assert (cached.names, cached.passed_over) == (files.names, files.passed_over)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    tmp_path.rename(tmp_path.with_name("moved"))
    for split, pattern, value in kinds:
        data = opened(tmp_path, split, label_files=pattern, cache=tmp_path.with_name("moved") / "cache")
        assert data.names == (["b", "x/a"] if split == "train" else ["images/b"])
        assert data[0][1].unique().tolist() == [value]


def test_a_cache_whose_names_are_composed_in_another_way_still_serves(tmp_path):
    pictures(tmp_path, f"images/{COMPOSED}.png")
    part = prepare(opened(tmp_path, labelled=False), tmp_path / "cache", 0)
    index = json.loads((part / "index.json").read_text())
    index["names"] = [DECOMPOSED]
    index["shards"][0]["images"]["made_from"] = fingerprint([DECOMPOSED], [tmp_path / f"images/{COMPOSED}.png"])
    (part / "index.json").write_text(json.dumps(index))
    assert len(opened(tmp_path, labelled=False, cache=tmp_path / "cache")) == 1
    label_maps(tmp_path, f"pseudo/{COMPOSED}.png")
    assert opened(tmp_path, labels=tmp_path / "pseudo", cache=tmp_path / "cache").problems == ()


def test_parts_that_older_versions_prepared_keep_their_names():
    older = Description("folder", "train", (64, 48), False, True, folder="photos")
    assert part_name(older) == "folder-photos-train-64x48-unlabelled-1aebdaaf"
    named = {part_name(replace(older, **{field: "x"})) for field in ("label_files", "image_files", "classes")}
    assert len(named | {part_name(older)}) == 4


def test_pseudo_labels_are_read_back_under_nested_names(tmp_path):
    pictures(tmp_path, "photos/x/a.jpg", "photos/b.jpg")
    for name, value in (("x/a", 4), ("b", 5)):
        save(tmp_path / f"pseudo/{name}.png", np.full((14, 20), value, np.uint8))
    data = opened(tmp_path / "photos", labels=tmp_path / "pseudo")
    assert [int(label[0, 0]) for _, label, _ in data] == [5, 4]
    save(tmp_path / "pseudo/b.png", np.full((14, 20), 77, np.uint8))
    rule = r"pseudo/b\.png: label ids must be among 0-18, 255, got 77 .*; pseudo labels hold places in the class list, "
    with pytest.raises(ValueError, match=rule + "and are made anew by `simfast pseudo-labels`$"):
        data[0]
