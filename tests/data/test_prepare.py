"""The cache: what comes out of it equals what the files give, whatever interrupted its making."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trees import ids_map, make_cityscapes, make_gta5, make_synthia, picture, save

import simfast
from simfast.data import open_dataset
from simfast.data.cache import verify
from simfast.data.loader import DomainLoader, evaluation_loader
from simfast.data.prepare import prepare

SIZE = (10, 7)
GTA5 = ("gta5", "train", {})
PARTS = {
    "source": GTA5,
    "synthia": ("synthia", "train", {}),
    "target": ("cityscapes", "train", {"labelled": False}),
    "held-out": ("cityscapes", "val", {"resize_labels": False}),
    "streets": ("streets", "test", {}),
}


@pytest.fixture
def roots(tmp_path):
    """A small GTA5, SYNTHIA and Cityscapes."""
    return {
        "gta5": make_gta5(tmp_path / "gta5", count=7),
        "synthia": make_synthia(tmp_path / "synthia"),
        "cityscapes": make_cityscapes(tmp_path / "cityscapes"),
        "streets": None,
    }


def open_part(roots, part=GTA5, **options):
    name, split, given = part
    return open_dataset(name, roots[name], split, SIZE, **given, **options)


def assert_same_items(first, second):
    assert list(first.names) == list(second.names)
    assert (first.class_ids, first.size) == (second.class_ids, second.size)
    for (*tensors, name), (*others, other) in zip(first, second, strict=True):
        assert name == other
        for one, two in zip(tensors, others, strict=True):
            assert one.dtype == two.dtype == torch.uint8
            assert torch.equal(one, two)


def written(part):
    """The shards of a part, each with what changes when it is written anew."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in part.glob("*.npy")}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_the_cache_gives_what_the_files_give(part, workers, roots, tmp_path):
    files = open_part(roots, part)
    folder = prepare(files, tmp_path / "cache", workers, shard_items=3)
    cached = open_part(roots, part, cache=tmp_path / "cache")
    assert cached.read_from["images"] == str(folder)
    assert_same_items(files, cached)
    assert verify(folder, workers) == []
    assert not list(folder.glob("*.part"))


def test_labels_of_unequal_sizes_stay_at_their_own(roots, tmp_path):
    for i, size in enumerate([(32, 16), (9, 31), (1, 1)]):
        save(tmp_path / f"mixed/val/images/{i}.png", picture(i, size))
        save(tmp_path / f"mixed/val/labels/{i}.png", ids_map([5, 255, 0], size))
    arguments = ("folder", tmp_path / "mixed", "val", SIZE)
    files = open_dataset(*arguments, resize_labels=False)
    prepare(files, tmp_path / "cache", 0, shard_items=2)
    assert_same_items(files, open_dataset(*arguments, resize_labels=False, cache=tmp_path / "cache"))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_batches_from_the_cache(workers, roots, tmp_path):
    target = ("cityscapes", "val", {})
    for part in (GTA5, target):
        prepare(open_part(roots, part), tmp_path / "cache", 0, shard_items=2)
    domains = [[open_part(roots, part, cache=cache) for part in (GTA5, target)] for cache in (None, tmp_path / "cache")]
    loaders = [
        DomainLoader(*pair, 3, seed=5, workers=n, flip=True) for pair, n in zip(domains, (0, workers), strict=True)
    ]
    for _, first, second in zip(range(6), *loaders):  # noqa: B905  the loaders are endless
        assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    images = [torch.cat([batch[0] for batch in evaluation_loader(data[1], 3, workers)]) for data in domains]
    assert torch.equal(*images)


def test_parts_lie_beside_each_other(roots, tmp_path):
    for i in range(1, 8):
        save(tmp_path / f"it/{i:05d}.png", picture(70 + i))
    kinds = [{}, {"images": tmp_path / "it"}, {"labelled": False}, {"resize_labels": False}]
    for options in kinds:
        prepare(open_part(roots, **options), tmp_path / "cache", 0)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    for options in kinds:
        assert_same_items(open_part(roots, **options), open_part(roots, **options, cache=tmp_path / "cache"))


def test_a_labelled_part_serves_where_no_labels_are_wanted(roots, tmp_path):
    prepare(open_part(roots), tmp_path / "cache", 0)
    assert_same_items(open_part(roots, labelled=False), open_part(roots, labelled=False, cache=tmp_path / "cache"))


def test_pseudo_labels_come_from_files_and_images_from_the_cache(roots, tmp_path):
    target = ("cityscapes", "train", {})
    prepare(open_part(roots, PARTS["target"]), tmp_path / "cache", 0)
    for i, name in enumerate(open_part(roots, PARTS["target"]).names):
        save(tmp_path / f"pseudo/{name}.png", ids_map([i, 255], SIZE))
    options = {"labels": tmp_path / "pseudo"}
    cached = open_part(roots, target, **options, cache=tmp_path / "cache")
    assert_same_items(open_part(roots, target, **options), cached)
    assert cached.read_from["labels"] == str(tmp_path / "pseudo")
    assert "cache" in cached.read_from["images"]
    with pytest.raises(ValueError, match="prepare: the data set must have its own labels or none, got replaced ones"):
        prepare(open_part(roots, target, **options), tmp_path / "cache", 0)


def test_a_moved_cache_needs_no_files(roots, tmp_path, caplog):
    expected = list(open_part(roots))
    prepare(open_part(roots), tmp_path / "cache", 0, shard_items=3)
    (tmp_path / "cache").rename(tmp_path / "moved")
    roots["gta5"].rename(tmp_path / "gone")
    for root in (roots["gta5"], None):
        items = list(open_dataset("gta5", root, "train", SIZE, cache=tmp_path / "moved"))
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(items, expected, strict=True))
    (told,) = [message for message in caplog.messages if "not all there" in message]
    assert str(roots["gta5"]) in told


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"size": (12, 9)}, {"resize_labels": False}, {"images": True}], ids=["size", "labels", "images"]
)
def test_a_part_that_was_not_prepared_is_named_with_what_is_there(options, roots, tmp_path):
    folder = prepare(open_part(roots), tmp_path / "cache", 0)
    if "images" in options:
        options = {"images": roots["gta5"] / "images"}
    options = {"size": SIZE} | options
    size = options.pop("size")
    with pytest.raises(ValueError, match=rf"cache/gta5-train-\S+: must be .* \({folder.name}\); run `simfast prepare`"):
        open_dataset("gta5", roots["gta5"], "train", size, cache=tmp_path / "cache", **options)


def rename_one(root):
    for kind in ("images", "labels"):
        (root / kind / "00004.png").rename(root / kind / "00009.png")


def replace_image(root):
    save(root / "images/00004.png", picture(99, (21, 14)))


def replace_label(root):
    save(root / "labels/00004.png", ids_map(range(20)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_one, r"7 names prepared and 7 there \(only in one of them: 00004 \.\.\.\)"),
        (replace_image, "got other lengths of the images from 00004 on"),
        (replace_label, "got other lengths of the labels from 00004 on"),
    ],
)
def test_a_cache_of_other_files_is_refused(change, message, roots, tmp_path):
    folder = prepare(open_part(roots), tmp_path / "cache", 0, shard_items=3)
    change(roots["gta5"])
    with pytest.raises(ValueError, match=rf"{folder.name}: must be made from the files in .*gta5.*{message}"):
        open_part(roots, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=message):
        prepare(open_part(roots), tmp_path / "cache", 0)


def test_a_name_that_an_index_cannot_hold_is_told_before_anything_is_written(roots, tmp_path):
    root = roots["gta5"].rename(tmp_path / "\udce4")  # as Python reads a folder of one byte, 0xe4
    with pytest.raises(ValueError, match=r"^cache: names of files and folders must be UTF-8, got .*udce4"):
        prepare(open_dataset("gta5", root, "train", SIZE), tmp_path / "cache", 0)
    assert not (tmp_path / "cache").exists()


def test_too_little_space_is_told_before_anything_is_written(roots, tmp_path):
    huge = open_dataset("gta5", roots["gta5"], "train", (10**6, 10**6))
    with pytest.raises(OSError, match=r"gta5-train\S+: needs 28000\.0 GB for 7 items, and the disk has \S+ [GM]B free"):
        prepare(huge, tmp_path / "cache", 0)
    assert not list((tmp_path / "cache").glob("*/*"))


# --- interruptions and broken shards ---------------------------------------------------------------------------------


def test_prepare_goes_on_after_a_bad_file_and_keeps_finished_shards(roots, tmp_path):
    bad = roots["gta5"] / "images/00006.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"00006\.png: must be a readable picture"):
        prepare(open_part(roots), tmp_path / "cache", 0, shard_items=2)
    (folder,) = (tmp_path / "cache").iterdir()
    before = written(folder)
    assert sorted(before) == [f"{kind}-0000{i}.npy" for kind in ("images", "labels") for i in (0, 1)]
    with pytest.raises(ValueError, match=r"must be a prepared part, got it unfinished"):
        open_part(roots, cache=tmp_path / "cache")
    bad.write_bytes(whole)
    prepare(open_part(roots), tmp_path / "cache", 0, shard_items=2)
    assert before.items() <= written(folder).items()
    assert_same_items(open_part(roots), open_part(roots, cache=tmp_path / "cache"))
    after = written(folder)
    prepare(open_part(roots), tmp_path / "cache", 0)
    assert written(folder) == after


def test_a_shard_of_files_that_have_changed_is_written_again(roots, tmp_path):
    (roots["gta5"] / "images/00006.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"00006\.png"):
        prepare(open_part(roots), tmp_path / "cache", 0, shard_items=2)
    for number in (1, 6):
        save(roots["gta5"] / f"images/{number:05d}.png", picture(80 + number, (30, 20)))
        save(roots["gta5"] / f"labels/{number:05d}.png", ids_map([8], (30, 20)))
    prepare(open_part(roots), tmp_path / "cache", 0, shard_items=2)
    assert_same_items(open_part(roots), open_part(roots, cache=tmp_path / "cache"))


SLOW = """
import signal, sys, time
from pathlib import Path
from simfast.data import dataset, open_dataset
from simfast.data.prepare import prepare
read = dataset.read_image
dataset.read_image = lambda path: time.sleep(0.05) or read(path)
data = open_dataset("streets", None, "train", (10, 7), labelled=False)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
print("begin", flush=True)
prepare(data, Path(sys.argv[1]), 2, shard_items=4)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_prepare_leaves_whole_shards_and_no_process(number, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(simfast.__file__).parents[1])}
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(tmp_path.glob("*/shard-*.json"))) < 3:
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)  # waits for all who hold the pipe: the workers too
    assert process.returncode != 0
    (folder,) = tmp_path.iterdir()
    assert not (folder / "index.json").exists()
    shards = [json.loads(path.read_text()) for path in folder.glob("shard-*.json")]
    assert 3 <= len(shards) < 30
    before = written(folder)
    kept = {shard["images"]["file"] for shard in shards}
    assert kept <= before.keys()

    files = open_dataset("streets", None, "train", SIZE, labelled=False)
    assert prepare(files, tmp_path, 2, shard_items=4) == folder
    after = written(folder)
    assert all(after[name] == before[name] for name in kept)
    assert_same_items(files, open_dataset("streets", None, "train", SIZE, labelled=False, cache=tmp_path))


def test_a_flipped_byte_is_found_and_its_shard_alone_is_written_again(roots, tmp_path):
    folder = prepare(open_part(roots), tmp_path / "cache", 0, shard_items=2)
    broken = folder / "labels-00002.npy"
    content = bytearray(broken.read_bytes())
    content[-3] ^= 1
    broken.write_bytes(content)
    (problem,) = verify(folder)
    assert problem.startswith(f"{broken}: its checksum is not the prepared one; run `simfast prepare`")
    before = written(folder)
    prepare(open_part(roots), tmp_path / "cache", 0)
    changed = [name for name, state in written(folder).items() if before.get(name) != state]
    assert sorted(changed) == ["images-00002.npy", "labels-00002.npy"]
    assert verify(folder) == []
    assert_same_items(open_part(roots), open_part(roots, cache=tmp_path / "cache"))


def test_writing_to_an_item_leaves_the_cache_as_it_is(roots, tmp_path):
    folder = prepare(open_part(roots), tmp_path / "cache", 0)
    open_part(roots, cache=tmp_path / "cache")[0][0].fill_(7)
    assert verify(folder) == []
