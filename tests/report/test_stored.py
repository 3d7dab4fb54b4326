"""Metrics and results that are read again after a crash, a power loss or a hand."""

import json
import logging
import os

import pytest

from simfast.report.metrics import Metrics, read_metrics
from simfast.report.results import read_result

ROW = {"kind": "eval", "step": 1, "miou": 0.5, "iou/train": None}


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "7", "null", '"text"', "{}", '{"kind": 3, "step": 1}', '{"kind": "eval", "step": "1"}'),
        *('{"kind": "eval", "step": true}', '{"kind": "eval", "step": 1, "miou": "high"}', "\0" * 20, "[" * 10**5),
        *('{"kind": "eval", "step": 1, "miou": [1]}', '{"kind": "eval", "step": 1, "miou": NaN}', '{"kind": "ev'),
    ],
)
def test_what_is_no_row_is_left_out_and_named_and_the_rows_after_it_are_kept(line, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{line}\n{json.dumps(ROW | {'step': 2})}\n")
    assert read_metrics(path) == [ROW, ROW | {"step": 2}]
    assert caplog.messages == [f"{path}: line 2 and 0 more are no rows of metrics, and left out"]
    metrics = Metrics(tmp_path, 1)
    metrics.close()
    assert path.read_text() == json.dumps(ROW) + "\n"


@pytest.mark.parametrize("end", ["", '{"kind": "tra', b"\xff\xfe", "\0\0"])
def test_a_last_line_cut_short_and_an_empty_file_need_no_words(end, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + (end if isinstance(end, bytes) else end.encode()))
    assert read_metrics(path) == [ROW]
    path.write_bytes(b"")
    assert read_metrics(path) == []
    assert caplog.messages == []


def test_a_result_that_is_not_there_or_empty_is_none(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "simfast")
    path = tmp_path / "result.json"
    assert read_result(path) is None
    assert caplog.messages == []
    for content in (b"", b"\0" * 9, b'{"last"', b"\xff", b"[" * 10**5):
        path.write_bytes(content)
        assert read_result(path) is None
    assert len(caplog.messages) == 5
    result = {"last": {"miou": 0.1}, "best": {"miou": None, "step": 3}}
    path.write_text(json.dumps(result))
    assert read_result(path) == result


def test_a_disk_without_room_is_named_once_and_not_again_where_the_file_is_closed(tmp_path):
    metrics = Metrics(tmp_path)
    (number,) = (fd for fd in map(int, os.listdir("/proc/self/fd")) if is_open(fd, tmp_path / "metrics.jsonl"))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, number)
    os.close(full)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        metrics.write("train", 1, {"seg": 1.0})
    metrics.close()


def is_open(number, path):
    try:
        return os.readlink(f"/proc/self/fd/{number}") == str(path)
    except FileNotFoundError:  # the one that listed them
        return False
