"""TensorBoard's files of a run."""

import contextlib
import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from simfast.runtime.files import naming

log = logging.getLogger("simfast")
VERSION = "brain.Event:2"
_files = itertools.count()


class Board:
    """Scalars for TensorBoard, written where they are said.

    torch's own writer does so in a thread, which on a full disk prints a traceback and fails the run later. Here the
    board is given up with one line, and the run goes on.

    Args:
        folder: made if need be.
        purge_step: what an earlier file says of this step and later ones is forgotten.
    """

    def __init__(self, folder: Path, purge_step: int):
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._path, self._records = folder / name, None
        with self._giving_up():
            folder.mkdir(exist_ok=True)
            self._records = RecordWriter(open(self._path, "wb"))  # noqa: SIM115  open as long as the run
        self._write(Event(file_version=VERSION))
        self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def flush(self) -> None:
        with self._giving_up():
            if self._records:
                self._records.flush()

    def close(self) -> None:
        records, self._records = self._records, None
        with self._giving_up():
            if records:
                records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._giving_up():
            if self._records:
                self._records.write(event.SerializeToString())

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            with naming(self._path):
                yield
        except OSError as error:
            records, self._records = self._records, None
            log.warning("TensorBoard's file is given up, and the run goes on: %s", error)
            with contextlib.suppress(OSError):  # what it still holds cannot be written either
                if records:
                    records.close()
