"""TensorBoard's file of a run: what it reads back, and that a disk without room ends no run."""

import logging

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simfast.report.board import Board


def read(folder):
    board = EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_scalars_come_back_and_a_resumed_run_forgets_later_steps(tmp_path):
    first = Board(tmp_path / "board", purge_step=1)
    for step in (1, 2, 3):
        first.add_scalar("train/seg", step / 2, step)
    first.close()
    second = Board(tmp_path / "board", purge_step=3)
    second.add_scalar("train/seg", 9.0, 3)
    second.flush()
    assert read(tmp_path / "board") == {"train/seg": [(1, 0.5), (2, 1.0), (3, 9.0)]}


@pytest.mark.parametrize("where", ["file", "folder"])
def test_where_it_cannot_be_written_it_is_given_up_with_one_line(tmp_path, monkeypatch, caplog, where):
    if where == "folder":
        (tmp_path / "board").write_text("")
    else:
        real = open
        monkeypatch.setattr("builtins.open", lambda path, *rest: real("/dev/full", *rest))
    with caplog.at_level(logging.WARNING):
        board = Board(tmp_path / "board", purge_step=1)
        for step in range(10):
            board.add_scalar("train/seg", 1.0, step)
            board.flush()
        board.close()
    monkeypatch.undo()
    assert len(caplog.messages) == 1
    assert str(tmp_path / "board") in caplog.messages[0]
