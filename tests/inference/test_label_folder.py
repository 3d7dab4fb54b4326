"""A folder of pseudo labels is as it was made, or is made anew or named."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from label_makers import NAMES, Network, Pictures, contents, make, read, said
from PIL import Image

from simfast.inference.label_folder import require_labels
from simfast.models import checkpoint


@pytest.fixture
def straight(tmp_path):
    """The files of a run that nothing stopped."""
    make(tmp_path / "straight")
    return contents(tmp_path / "straight")


CUTS = {"empty": 0, "a block of zeros": None, "half": 0.5}


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(bytes(4096) if share is None else content[: int(len(content) * share)])


@pytest.mark.parametrize("share", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("file", ["street_002.png", ".progress.pt", "thresholds.json"])
def test_what_a_power_loss_leaves_is_made_anew_by_the_same_call(tmp_path, straight, file, share):
    out = tmp_path / "out"
    if file == "thresholds.json":
        shutil.copytree(tmp_path / "straight", out)
    else:
        model = Network()
        make(out, model, stop=lambda: model.calls == 14)
    cut(out / file, share)
    if file == "thresholds.json":
        with pytest.raises(ValueError, match=r"thresholds\.json: must be what pseudo labels come with"):
            require_labels(out, NAMES)
    make(out)
    assert contents(out) == straight


@pytest.mark.parametrize("state", [{}, {"histogram": 5}, {"histogram": torch.ones(3, dtype=torch.int64)}])
def test_progress_of_another_form_is_dropped(tmp_path, straight, state):
    model, out = Network(), tmp_path / "out"
    make(out, model, stop=lambda: model.calls == 14)
    theirs = checkpoint.load(out / ".progress.pt")
    checkpoint.save(out / ".progress.pt", {"fingerprint": theirs["fingerprint"]} | state)
    make(out)
    assert contents(out) == straight


@pytest.mark.parametrize("change", [torch.neg, lambda h: 10 * h, lambda h: h.index_fill(0, torch.tensor([7]), 1)])
def test_progress_that_counts_no_whole_images_of_the_set_is_dropped(tmp_path, straight, change):
    model, out = Network(), tmp_path / "out"
    make(out, model, stop=lambda: model.calls == 5)
    theirs = checkpoint.load(out / ".progress.pt")
    checkpoint.save(out / ".progress.pt", theirs | {"histogram": change(theirs["histogram"])})
    make(out)
    assert contents(out) == straight


@pytest.mark.parametrize("picture", [Image.new("L", (3, 3)), Image.new("RGB", (25, 18))])
def test_a_map_of_another_form_is_made_anew(tmp_path, straight, picture):
    model, out = Network(), tmp_path / "out"
    make(out, model, stop=lambda: model.calls == 14)
    picture.save(out / "street_002.png")
    make(out)
    assert contents(out) == straight


@pytest.mark.parametrize(("old", "new"), [('"median": 0.', '"median": 1.'), ('"images": 9', '"images": 8')])
def test_a_number_that_changes_in_what_is_said_of_them_is_found(tmp_path, straight, old, new):
    path = tmp_path / "straight/thresholds.json"
    path.write_text(path.read_text().replace(old, new, 1))
    for call in (lambda: require_labels(path.parent, NAMES), lambda: make(path.parent)):
        with pytest.raises(ValueError, match=r"thresholds\.json: must be what pseudo labels come with.*checksum"):
            call()


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {}])
def test_what_is_said_of_a_class_is_numbers(tmp_path, straight, value):
    path = tmp_path / "straight/thresholds.json"
    result = said(path.read_text())
    result["classes"]["crop"]["kept_fraction"] = value
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"thresholds\.json: .*kept_fraction of crop must be a number"):
        make(path.parent)


def other_map(path):
    Image.fromarray(np.zeros((18, 25), np.uint8)).save(path)


@pytest.mark.parametrize("change", [lambda path: cut(path, 0), lambda path: cut(path, 0.5), other_map, os.remove])
def test_a_map_that_changes_after_it_was_made_is_named(tmp_path, straight, change):
    out = tmp_path / "straight"
    change(out / "street_004.png")
    for call in (lambda: require_labels(out, NAMES), lambda: make(out)):
        with pytest.raises(ValueError, match=r"street_004\.png: must be "):
            call()


def test_a_map_that_is_changed_by_hand_is_kept_in_the_way_that_is_said(tmp_path, straight):
    out = tmp_path / "straight"
    for name in ("street_004", "street_008"):  # the last one, too
        other_map(out / f"{name}.png")
        path = out / "thresholds.json"
        with pytest.raises(ValueError, match=rf"{name}\.png: .*null for {name} and for checksum in thresholds\.json"):
            make(out)
        path.write_text(re.sub(rf'"({name}|checksum)": "\w+"', r'"\1": null', path.read_text()))
        make(out)
        require_labels(out, NAMES)
    assert not read(out / "street_004.png").any()


@pytest.mark.parametrize("line", ["images", "fingerprint", "street_008", "checksum"])
def test_a_slip_in_what_is_said_of_them_removes_no_map(tmp_path, straight, line):
    path = tmp_path / "straight/thresholds.json"
    path.write_text(re.sub(rf'( "{line}": [^,\n]+),?\n', r"\1,,\n", path.read_text()))
    for call in (lambda: require_labels(path.parent, NAMES), lambda: make(path.parent)):
        with pytest.raises(ValueError, match=r"thresholds\.json: must be what pseudo labels come with"):
            call()
    assert contents(path.parent).keys() == straight.keys()


def test_a_finished_set_is_taken_where_nothing_can_be_written(tmp_path, straight, monkeypatch):
    def read_only(path, missing_ok=False):  # as of a read-only mount, whether or not the file is there
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    make(tmp_path / "straight")
    assert contents(tmp_path / "straight") == straight


def test_maps_without_checksums_are_taken_as_they_are_and_that_is_said(tmp_path, straight, caplog):
    path = tmp_path / "straight/thresholds.json"
    result = said(path.read_text())
    assert sorted(result.pop("checksums")) == Pictures(9).names
    path.write_text(json.dumps(result))
    other_map(tmp_path / "straight/street_004.png")
    require_labels(tmp_path / "straight", NAMES)
    assert "made by an older version" in caplog.text


@pytest.mark.parametrize("content", [b"{}", b"[1]", b'{"fingerprint": "x", "classes": 3}', b"[" * 99999, b"\xff"])
def test_thresholds_of_others_are_left_alone_and_named(tmp_path, content):
    (tmp_path / "thresholds.json").write_bytes(content)
    for call in (lambda: require_labels(tmp_path, NAMES), lambda: make(tmp_path)):
        with pytest.raises(ValueError, match=r"thresholds\.json: must be what pseudo labels come with"):
            call()
    assert contents(tmp_path) == {"thresholds.json": content}


@pytest.mark.parametrize("name", ["../X", "/tmp/X", "a/../../X", "a\0", "\ud800", "x" * 300])
def test_names_in_checksums_lead_nowhere_else(tmp_path, straight, name):
    path = tmp_path / "straight/thresholds.json"
    path.write_text(json.dumps(said(path.read_text()) | {"checksums": {name: "0"}}))
    with pytest.raises(ValueError, match=r"names: must be a (relative )?path"):
        require_labels(tmp_path / "straight", NAMES)


def test_a_second_program_is_refused_while_maps_are_made(tmp_path, straight):
    model, out, refused = Network(), tmp_path / "out", []

    def second(n):
        if n == 12:
            with pytest.raises(ValueError, match=r"out: .*out must be used by one program at a time"):
                make(out)
            refused.append(n)

    model.on_call = second
    make(out, model)
    assert refused == [12]
    assert contents(out) == straight


def test_a_finished_set_keeps_no_lock_of_a_program_that_was_killed(tmp_path, straight):
    (tmp_path / "straight/.lock").write_text("{}")
    make(tmp_path / "straight")
    assert contents(tmp_path / "straight") == straight
