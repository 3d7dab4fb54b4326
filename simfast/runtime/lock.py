"""One program at a time in a folder."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from simfast.runtime.files import naming, sync_folder

log = logging.getLogger("simfast")

NAME = ".lock"
# Of file systems without locks: network ones that are mounted so, as NFS without lockd and Lustre without flock.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A lock of a file is the process's: it would not keep another thread of ours out.
_ours: set[tuple[int, Path]] = set()
_asking = threading.Lock()


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Context of a program that writes into a folder, in which no other one does so. However the process dies, the
    folder is free again; its worker processes do not hold it. Where the file system has no locks, a warning says that
    nothing keeps another program out.

    Args:
        folder: which is there.
        what: the setting that names it, for the error.

    Raises:
        ValueError: another program, or another part of this one, is in it; says which.
        OSError: the folder cannot be written to.
    """
    path = Path(os.path.realpath(folder)) / NAME
    key = (os.getpid(), path)
    with _asking:
        if key in _ours:
            rule = "must be used by one program at a time"
            raise ValueError(f"{what}: {folder} {rule}, got another part of this one in it")
        # POSIX locks: those of flock would go on in forked workers that outlive this process.
        with naming(path):
            number = _opened(path, folder, what)
        _ours.add(key)
    try:
        yield
    finally:
        with _asking:
            _ours.discard(key)
            path.unlink(missing_ok=True)
            # Or a power loss brings it back into what is finished, where nobody comes again who would remove it.
            with contextlib.suppress(OSError):
                sync_folder(path.parent)
            os.close(number)


def tidy(folder: Path) -> None:
    """Removes the file that a program leaves in a folder where it was killed, for folders that are finished and not
    entered again; where a program is in it, that one's stays."""
    if (folder / NAME).exists():
        with contextlib.suppress(ValueError, OSError), locked(folder, "folder"):
            pass


def _opened(path: Path, folder: Path, what: str) -> int:
    """A descriptor of the lock's file, which is ours from now on until it is closed."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                rule = "nothing keeps a second program out of this folder, as its file system has no locks"
                log.warning("%s: %s: %s", folder, rule, error.strerror)
                return number
            if _is_still(path, number):
                who = {"process": os.getpid(), "machine": socket.gethostname()}
                try:
                    os.ftruncate(number, 0)
                    os.write(number, json.dumps(who).encode())
                except OSError:  # a full disk
                    path.unlink(missing_ok=True)
                    raise
                return number
        except BlockingIOError:
            who = os.read(number, 1000).decode(errors="replace").strip() or "it does not say which"
            os.close(number)
            rule = "must be used by one program at a time"
            raise ValueError(f"{what}: {folder} {rule}, got one in it ({who}); wait for its end") from None
        except BaseException:
            os.close(number)
            raise
        os.close(number)  # whoever had it before has just removed it


def _is_still(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False
