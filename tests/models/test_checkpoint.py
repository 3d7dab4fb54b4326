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
    with pytest.raises(ValueError, match=r"pickle\.pt: must be"):
        checkpoint.read(tmp_path / "pickle.pt")
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
    (tmp_path / "previous.pt").unlink()
    os.link(path, tmp_path / "previous.pt")  # as a kill leaves it before last.pt is replaced
    checkpoint.save(path, STATE | {"step": 3}, previous="previous.pt")
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def refuse(_number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_others_can_read_it(tmp_path):
    checkpoint.save(tmp_path / "last.pt", STATE)
    assert torch.equal(torch.load(tmp_path / "last.pt", weights_only=True)["model"]["w"], STATE["model"]["w"])


def test_a_full_disk_says_so_and_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*last\.pt"):
        checkpoint.save(path, STATE, previous="previous.pt")
    assert os.listdir(tmp_path) == ["last.pt"]
    checkpoint.load(path)
