"""Lists of files as splits: what they name, in their order, and what is wrong with one."""

import pytest
from trees import label_maps, opened, paths, pictures


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("train.txt", "# images\n\nimages/b.png labels/b.png\n  images/x/a.png\tlabels/x/a.png\n"),
        ("lists/train.lst", "images/b.png, labels/b.png\r\nimages/x/a.png,labels/x/a.png"),
        ("train.csv", '\ufeffimage,label\n"images/b.png","labels/b.png"\nimages\\x\\a.png,labels\\x\\a.png\n'),
        ("train.txt", "images/b.png\nimages/x/a.png\n"),
        ("train.csv", "images/b.png,\nimages/x/a.png,\n"),
    ],
)
def test_a_split_may_be_a_list_of_files_in_its_order(file, text, tmp_path):
    pictures(tmp_path, "images/x/a.png", "images/b.png", "images/c.png")
    label_maps(tmp_path, "labels/x/a.png", "labels/b.png")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    data = opened(tmp_path, file)
    assert data.names == ["images/b", "images/x/a"]
    assert paths(data, tmp_path)[1] == ("images/x/a.png", "labels/x/a.png")
    assert opened(tmp_path, file, labelled=False)[0][1].shape == (0,)


def test_a_list_may_lie_elsewhere_and_its_labels_be_found_by_a_pattern(tmp_path, monkeypatch):
    pictures(tmp_path, "data/my photos/a.jpg")
    label_maps(tmp_path, "data/my photos/a_L.png")
    (tmp_path / "mine.txt").write_text('"my photos/a.jpg"\n')
    monkeypatch.chdir(tmp_path)
    assert opened(tmp_path / "data", "mine.txt", label_files="{dir}/{stem}_L.png").names == ["my photos/a"]
    (tmp_path / "data/my photos/own.txt").write_text("a.jpg a_L.png\n")
    assert opened(tmp_path / "data", "my photos/own.txt").names == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images/a.png\nimages/a.png\n", r"list\.txt:2: .* no other line .* got images/a\.png as in line 1"),
        ("images/a.png\nimages/a.jpg\n", r"list\.txt:2: .* no other line"),
        ("/etc/a.png\n", r"list\.txt:1: must be a relative path that does not go upwards, got '/etc/a\.png'"),
        ("images/../../a.png\n", r"list\.txt:1: must be a relative path"),
        ("images/a.png ../labels/a.png\n", r"list\.txt:1: must be a relative path"),
        ("a b c\n", r"list\.txt:1: must be \"image\" or \"image label\""),
        ("images/a\n", r"list\.txt:1: must name an image \(\.png .*\), got images/a"),
        ("images/a.png labels/a.jpg\n", r"list\.txt:1: must name a label map"),
        ("images/a.png images/a.png\n", r"list\.txt must lead to a label map of its own .* for itself"),
        ("# nothing\n", r"list\.txt: must name an image, got none"),
        ("images/b.png\n", r"list\.txt:1: must name an image in .*, got images/b\.png, and nothing is there"),
        ("images/a.png labels/b.png\n", r"list\.txt:1: images/a\.png must have a label map, got no .*labels/b\.png"),
        ("images/a.png\n", r"list\.txt:1: images/a\.png must have a label map, got no .*; label_files \(--source-l"),
    ],
)
def test_a_bad_list_is_named_with_its_line(text, message, tmp_path):
    pictures(tmp_path, "images/a.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "list.txt")


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"val\.txt: must be a list of images, in .* or here, got nothing there"):
        opened(tmp_path, "val.txt")
