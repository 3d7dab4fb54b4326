"""A checkpoint is as it was written, or is not loaded."""

import errno
import os
import pickle
import random
import re
import zipfile

import pytest
import torch

from simfast.models import checkpoint

STATE = {"step": 7, "model": {"w": torch.arange(3000.0)}, "config": {"seed": 0}}


def flipped(path, at, bit):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("ours", [True, False])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, ours):
    path, draw = tmp_path / "last.pt", random.Random(0)
    checkpoint.save(path, STATE)
    if not ours:
        torch.save(STATE["model"], path)
    whole = path.read_bytes()
    # Of a zip archive of others, what only says where its parts are is not covered.
    data = whole.index(STATE["model"]["w"].numpy().tobytes()) + 64
    places = [*range(-60, 0), *(draw.randrange(len(whole)) for _ in range(300))] if ours else range(data, data + 200)
    for at in places:
        path.write_bytes(whole)
        flipped(path, at, draw.randrange(8))
        with pytest.raises(ValueError, match="must be"):
            checkpoint.read(path)
    path.write_bytes(whole)
    checkpoint.read(path)


def test_a_zip_bomb_is_refused_before_it_unfolds_and_an_odd_pickle_in_one_line(tmp_path, recwarn):
    torch.save(STATE, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for part in whole.namelist():
            content = b"(" * 2**22 if part.endswith("data.pkl") else whole.read(part)
            bomb.writestr(part, content, zipfile.ZIP_DEFLATED)
    with pytest.raises(
        ValueError, match=r"bomb\.pt: must be as torch\.save writes it, without compression, got 'whole/"
    ):
        checkpoint.read(tmp_path / "bomb.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"model": range(3)}, protocol=4))
    with pytest.raises(ValueError, match=r"pickle\.pt: must be") as caught:
        checkpoint.read(tmp_path / "pickle.pt")
    assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_a_cut_checkpoint_is_found(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, *range(len(whole) - 90, len(whole))):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="must be"):
            checkpoint.load(path)


def test_the_checkpoint_before_is_kept_and_named_where_the_last_is_damaged(tmp_path):
    path = tmp_path / "last.pt"
    for step in (1, 2, 3):
        checkpoint.save(path, STATE | {"step": step}, previous="previous.pt")
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]
    flipped(path, 1000, 0)
    with pytest.raises(ValueError, match=r"damaged.*previous\.pt"):
        checkpoint.load(path)
    for length in (3000, 0):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=r"must be.*previous\.pt"):
            checkpoint.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"last\.pt is not a file; .*previous\.pt"):
        checkpoint.load(path)
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 2
    assert re.search(r"no .*best\.pt; .*previous\.pt", checkpoint.missing(tmp_path / "best.pt"))


def test_a_save_that_fails_at_its_end_leaves_both_files_and_one_after_a_kill_there_leaves_no_third(
    tmp_path, monkeypatch
):
    path = tmp_path / "last.pt"
    for step in (1, 2):
        checkpoint.save(path, STATE | {"step": step}, previous="previous.pt")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match=r"No space left"):
            checkpoint.save(path, STATE | {"step": 3}, previous="previous.pt")
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("last.pt", "previous.pt")] == [2, 1]
    with monkeypatch.context() as patch:  # both names are the last one's, and a kill comes
        patch.setattr(os, "replace", lambda old, new: refuse() if new.name == path.name else os.rename(old, new))
        with pytest.raises(OSError, match=r"No space left"):
            checkpoint.save(path, STATE | {"step": 3}, previous="previous.pt")
    assert checkpoint.load(path)["step"] == 2
    (tmp_path / "previous.pt").unlink()
    os.link(path, tmp_path / "previous.pt")  # as a kill leaves it before last.pt is replaced
    checkpoint.save(path, STATE | {"step": 3}, previous="previous.pt")
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_checkpoint_before_is_kept_where_the_file_system_has_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "last.pt", STATE | {"step": step}, previous="previous.pt")
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("last.pt", "previous.pt")] == [3, 2]
    assert len(os.listdir(tmp_path)) == 2


def test_others_can_read_it(tmp_path):
    checkpoint.save(tmp_path / "last.pt", STATE)
    assert zipfile.ZipFile(tmp_path / "last.pt").comment  # the checksum is in the archive, not behind it
    assert torch.equal(torch.load(tmp_path / "last.pt", weights_only=True)["model"]["w"], STATE["model"]["w"])


def test_a_full_disk_says_so_and_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*last\.pt"):
        checkpoint.save(path, STATE, previous="previous.pt")
    assert os.listdir(tmp_path) == ["last.pt"]
    checkpoint.load(path)


RUN = {"step": 3, "last": None, "best": {"step": 2, "miou": 0.5}, "config": {"seed": 0}, "convention": "rgb"}
RUN |= {"model": {}, "optimizer": {}, "random": {"cpu": torch.zeros(3, dtype=torch.uint8), "cuda": []}}
LOSSES = {"since": 2, "scale": None, "sums": {"seg": [0.5]}}
RUN |= {"losses": LOSSES}
GENERATORS = {"cpu": RUN["random"]["cpu"], "cuda": [torch.zeros(3)]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": True}, "'step' must be the steps done, got bool True"),
        ({"step": -1}, "'step' must be 0 or more"),
        ({"config": {3: 0}}, "'config' settings by name"),
        ({"best": {"step": 2, "miou": "0.5"}}, "'best' must be a row of metrics with step and miou"),
        ({"random": GENERATORS}, "'random' must hold states of generators, got cuda list"),
        ({"look_due": 1}, "'look_due' must be whether an evaluation was missed, got int 1"),
        ({"losses": LOSSES | {"since": 3}}, "'losses' must be sums"),
        ({"losses": LOSSES | {"sums": {"seg": [0.5, 0.5]}}}, "'losses' must be sums"),
    ],
)
def test_what_no_run_saves_is_named_by_its_key(tmp_path, change, said):
    checkpoint.save(tmp_path / "last.pt", RUN)
    assert checkpoint.load_run(tmp_path / "last.pt")["step"] == 3
    checkpoint.save(tmp_path / "last.pt", RUN | change)
    with pytest.raises(ValueError, match=rf"last\.pt.*{said}"):
        checkpoint.load_run(tmp_path / "last.pt")


WANTED = {"groups": [{"lr": 0.1, "name": "head", "fused": None}], "rate": torch.tensor(0.1), "w": torch.zeros(2)}


def group(**change):
    return {"groups": [WANTED["groups"][0] | change]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v": torch.zeros(2)}, "last: must have 3 keys, got 'v', which is not known"),
        ({"groups": 2 * WANTED["groups"]}, "last: groups: must be a list of 1, got list"),
        ({"groups": {0: {}}}, "last: groups: must be a list of 1, got dict"),
        ({"groups": [3]}, "last: groups: 0: must be a mapping, got int 3"),
        (group(name=3), "last: groups: 0: name: must be a string, got int 3"),
        (group(lr="0.1"), "last: groups: 0: lr: must be a number, got str '0.1'"),
        ({"groups": [{"name": "head"}]}, "last: groups: 0: must have the key 'lr'"),
        ({"rate": torch.zeros(2)}, r"last: rate: must be a floating tensor \[\], got a float32 tensor \[2\]"),
        ({"w": 0.1}, r"last: w: must be a floating tensor \[2\], got float 0\.1"),
    ],
)
def test_what_a_network_has_not_is_named_by_its_keys(change, said):
    with pytest.raises(ValueError, match=said):
        checkpoint.require_like(WANTED | change, WANTED, "last")


def test_what_other_versions_and_precisions_saved_is_taken():
    theirs = {"groups": ({"lr": 1, "name": "head", "foreach": True},), "rate": 0.1, "w": torch.zeros(2).half()}
    checkpoint.require_like(theirs, WANTED, "last")
