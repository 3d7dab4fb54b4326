"""A cache under faults: what is not as it was prepared is told by name, and `prepare` mends it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trees import ids_map, make_gta5, picture, save

import simfast
from simfast.data import open_dataset
from simfast.data.loader import DomainLoader
from simfast.data.prepare import prepare

SIZE = (10, 7)


def opened(tmp_path, **options):
    return open_dataset("gta5", tmp_path / "gta5", "train", SIZE, **options)


def items(dataset):
    return [(image.tolist(), label.tolist(), name) for image, label, name in dataset]


@pytest.fixture
def part(tmp_path):
    """A prepared part of five images."""
    make_gta5(tmp_path / "gta5", count=5)
    return prepare(opened(tmp_path), tmp_path / "cache", 0, shard_items=2)


def change(path, at=-3, flip=1):
    content = bytearray(path.read_bytes())
    content[at] ^= flip
    path.write_bytes(content)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [change, zero, cut])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_shard_that_changes_during_training_is_an_error_that_names_it(damage, kind, part, tmp_path):
    data = opened(tmp_path, cache=tmp_path / "cache")
    batches = iter(DomainLoader(data, None, 5, seed=0, workers=0, flip=False))
    next(batches)
    damage(part / f"{kind}-00001.npy")
    with pytest.raises(ValueError, match=rf"{kind}-00001\.npy: .*run `simfast prepare`"):
        next(batches)


@pytest.mark.parametrize("damage", [change, zero, cut])
def test_prepare_mends_a_damaged_shard_and_leaves_the_others(damage, part, tmp_path):
    before = {path.name: path.stat().st_ino for path in part.glob("*.npy")}
    damage(part / "labels-00001.npy")
    assert prepare(opened(tmp_path), tmp_path / "cache", 0) == part
    after = {path.name: path.stat().st_ino for path in part.glob("*.npy")}
    changed = {name for name in before if after[name] != before[name]}
    assert {"labels-00001.npy"} <= changed <= {"labels-00001.npy", "images-00001.npy"}
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))


@pytest.mark.parametrize("content", [b"", b'{"format": 2, "names": [', b"[" * 100_000, b"\xff\x00"])
def test_prepare_mends_an_index_that_a_power_loss_cut(content, part, tmp_path):
    (part / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.json: must be the index of a prepared part, got .*run `simfast prep"):
        opened(tmp_path, cache=tmp_path / "cache")
    prepare(opened(tmp_path), tmp_path / "cache", 0)
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))


def test_prepare_writes_a_shard_of_a_damaged_record_again(part, tmp_path):
    (part / "index.json").rename(part / "shard-00000.json")
    for number in (1, 2):
        (part / f"shard-{number:05d}.json").write_bytes(b"")
    prepare(opened(tmp_path), tmp_path / "cache", 0, shard_items=2)
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))
    assert not list(part.glob("shard-*"))


WRONG = {
    "a name that leads out": ("names", ["../X", "b", "c", "d", "e"]),
    "an absolute name": ("names", ["/tmp/X", "b", "c", "d", "e"]),
    "a name with a null byte": ("names", ["a\0", "b", "c", "d", "e"]),
    "a name twice": ("names", ["a", "a", "c", "d", "e"]),
    "numbers for names": ("names", [1, 2, 3, 4, 5]),
    "fewer names": ("names", ["a"]),
    "no names": ("names", []),
    "a class of no id": ("class_ids", [0, -1]),
    "words for classes": ("class_ids", "road"),
    "no items in a shard": ("shard_items", 0),
    "a fraction of items": ("shard_items", 2.5),
    "no shards": ("shards", []),
    "nothing for shards": ("shards", None),
    "a list for the description": ("description", []),
    "a newer format": ("format", 99),
    "a shard elsewhere": ("shards.0.images.file", "../../secret.npy"),
    "another's shard": ("shards.1.images.file", "images-00000.npy"),
    "a word for a length": ("shards.0.images.bytes", "many"),
    "a length under the pixels'": ("shards.0.images.bytes", 10),
    "a checksum too few": ("shards.0.images.crc32", [1]),
    "no checksums": ("shards.0.labels.crc32", None),
    "endless label maps": ("shards.0.labels.shapes", [[10**9, 10**9]] * 2),
    "turned label maps": ("shards.0.labels.shapes", [[-7, -10]] * 2),
    "no labels": ("shards.0.labels", None),
    "another size": ("description.size", [7, 10]),
}


@pytest.mark.parametrize(("key", "value"), WRONG.values(), ids=WRONG)
def test_an_index_that_says_what_cannot_be_is_refused_in_one_line_and_mended(key, value, part, tmp_path):
    path = part / "index.json"
    index = json.loads(path.read_text())
    *where, last = key.split(".")
    entry = index
    for step in where:
        entry = entry[int(step) if step.isdecimal() else step]
    assert last in entry
    entry[last] = value
    path.write_text(json.dumps(index))
    for root in (tmp_path / "gta5", None):
        with pytest.raises(ValueError, match=r"index\.json: ") as caught:
            open_dataset("gta5", root, "train", SIZE, cache=tmp_path / "cache")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    prepare(opened(tmp_path), tmp_path / "cache", 0)
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))


@pytest.mark.parametrize("full_labels", [False, True])
def test_a_cache_of_the_first_format_is_read_and_gets_checksums(full_labels, tmp_path, caplog):
    make_gta5(tmp_path / "gta5", count=5)
    options = {"resize_labels": not full_labels}
    part = prepare(opened(tmp_path, **options), tmp_path / "cache", 0, shard_items=2)
    as_now = json.loads((part / "index.json").read_text())
    index = json.loads((part / "index.json").read_text()) | {"format": 1}
    for shard in index["shards"]:
        for kind in ("images", "labels"):
            del shard[kind]["crc32"]
        shard["labels"]["shapes"] = None
    (part / "index.json").write_text(json.dumps(index))
    assert items(opened(tmp_path, **options, cache=tmp_path / "cache")) == items(opened(tmp_path, **options))
    (told,) = [message for message in caplog.messages if "older version" in message]
    assert told.startswith(str(part))
    inodes = {path: path.stat().st_ino for path in part.glob("*.npy")}
    prepare(opened(tmp_path, **options), tmp_path / "cache", 0)
    assert json.loads((part / "index.json").read_text()) == as_now
    assert {path: path.stat().st_ino for path in part.glob("*.npy")} == inodes


def test_a_file_that_is_newer_than_what_was_prepared_of_it_is_named_with_the_remedy(part, tmp_path, caplog):
    """Where lengths say nothing, as of NPY and BMP. Of a copy of the files it may be in vain, so it is no error."""
    after = (part / "labels-00001.npy").stat().st_mtime_ns + 10**9
    for changed in ((), ("00003", "00004")):
        for name in changed:
            os.utime(tmp_path / f"gta5/labels/{name}.png", ns=(after, after))
        caplog.clear()
        opened(tmp_path, cache=tmp_path / "cache")
        prepare(opened(tmp_path), tmp_path / "cache", 0)
        told = [message for message in caplog.messages if message.startswith(str(part))]
        assert len(told) == (2 if changed else 0)
    for message in told:
        assert f"is older than 2 of the files it was made from, such as {tmp_path}/gta5/labels/00003.png; " in message
        assert f"delete {part} and run `simfast prepare` again" in message


def test_files_of_another_folder_than_was_prepared_are_told_while_that_one_is_there(part, tmp_path, caplog):
    """Names and lengths may be equal, as of NPY and BMP. They may be the same data elsewhere, so it is no error."""
    shutil.copytree(tmp_path / "gta5", tmp_path / "other")
    (tmp_path / "link").symlink_to("gta5")
    for root, told in (("link", False), ("other", True), ("other", False)):
        caplog.clear()
        open_dataset("gta5", tmp_path / root, "train", SIZE, cache=tmp_path / "cache")
        rule = f"{part}: was made from the images in {tmp_path}/gta5/images, which is there, and is read for those in "
        found = [text for text in caplog.messages if text.startswith(f"{part}: was ")]
        assert [text.startswith(rule + f"{tmp_path}/other/images; ") for text in found] == [True] * told
        if told:
            shutil.rmtree(tmp_path / "gta5")


def test_an_item_is_whole_where_reads_are_short(part, tmp_path, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda number, buffers, at: real(number, [buffers[0][:7]], at))
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))


def test_shards_are_arrays_that_anyone_can_load(part, tmp_path):
    data = opened(tmp_path)
    images, labels = (np.load(part / f"{kind}-00001.npy") for kind in ("images", "labels"))
    assert (images == torch.stack([data.image(2), data.image(3)]).numpy()).all()
    assert (labels == torch.stack([data.label(2), data.label(3)]).numpy()).all()


@pytest.mark.parametrize("file", ["images-00001.npy", "labels-00001.npy", "shard-00001.json", "index.json"])
def test_a_disk_that_fills_is_one_line_and_leaves_room(file, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    make_gta5(tmp_path / "gta5", count=5)
    part = prepare(opened(tmp_path), tmp_path / "cache", 0, shard_items=2)
    for path in part.iterdir():
        path.unlink()
    (part / f"{file}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        prepare(opened(tmp_path), tmp_path / "cache", 0, shard_items=2)
    assert str(part / file) in str(caught.value)
    assert " MB were to be written in all" in str(caught.value) or file == "index.json"
    assert not list(part.glob("*.part"))
    assert not (part / "index.json").exists()
    prepare(opened(tmp_path), tmp_path / "cache", 0, shard_items=2)
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))


PREPARE = r"""
import os, sys, time
from pathlib import Path
from simfast.data import dataset, open_dataset
from simfast.data.prepare import prepare
read = dataset.read_image
dataset.read_image = lambda path: (os.write(1, b"in\n"), time.sleep(0.2), read(path))[2]
data = open_dataset("gta5", Path(sys.argv[1]), "train", (10, 7))
prepare(data, Path(sys.argv[2]), int(sys.argv[3]), shard_items=2)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_prepare_is_refused_until_the_first_is_over_or_dead(workers, tmp_path):
    make_gta5(tmp_path / "gta5", count=5)
    command = [sys.executable, "-c", PREPARE, tmp_path / "gta5", tmp_path / "cache", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(Path(simfast.__file__).parents[1])}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert first.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match=rf"cache: .* one program at a time, got one in it .*{first.pid}"):
        prepare(opened(tmp_path), tmp_path / "cache", 0)
    first.kill()
    first.communicate(timeout=60)
    prepare(opened(tmp_path), tmp_path / "cache", 0, shard_items=2)
    assert items(opened(tmp_path, cache=tmp_path / "cache")) == items(opened(tmp_path))


def test_names_of_a_part_lead_nowhere_else_when_they_meet_a_folder_of_labels(part, tmp_path):
    """The files of replaced labels are looked up by name among those that are in the folder."""
    save(tmp_path / "X.png", ids_map([1]))
    save(tmp_path / "pseudo/00001.png", picture(1))
    with pytest.raises(ValueError, match="pseudo: must hold a label map for each of 5 names"):
        opened(tmp_path, cache=tmp_path / "cache", labels=tmp_path / "pseudo")
