"""Files that are there whole or not at all, also after a power loss."""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 255
"""Bytes, on the file systems in use."""
MOST_LINKS = 40
"""That are followed from one to the next, as Linux does."""
CHUNK = 2**20
"""Bytes that are read at a time."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Context in which a file's new content is written, for writing and reading; at its end it takes the file's place,
    whole, and is on the disk. Where the context ends by an error, the file is as it was, and nothing else is left.

    It is written under another name in the same folder. Of a link, the file that it leads to is replaced; what is no
    regular file, as a terminal or a pipe, or what this process has open, as /dev/stdout, is written to directly.

    Args:
        path: of the file, in a folder that is there.

    Raises:
        OSError: what writing raises, naming the file: that of a full disk, too, where a library in between hides it.
    """
    if (number := _descriptor(path)) is not None:
        if sys.stdout is not None:
            sys.stdout.flush()  # what was said before stands before it
        with naming(path), open(os.dup(number), "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with naming(path), open(path, "wb") as file:
            yield file
        return
    temporary = unfinished(path)
    try:
        with naming(path):
            raw = _Raw(temporary, "w+")
            try:
                with io.BufferedRandom(raw) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
            except Exception as error:
                raise raw.failure or error from None
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error counts
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and str(error.filename) == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _descriptor(path: Path) -> int | None:
    """Of /dev/stdout and its like, which of this process's open files it is: it may be a file that others have written
    to, a pipe or a socket, and is neither to be replaced nor opened anew."""
    own = {os.path.realpath(folder) for folder in ("/dev/fd", "/proc/self/fd")}
    for _ in range(MOST_LINKS):
        if path.name.isdigit() and os.path.realpath(path.parent) in own:
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def write_text(path: Path, text: str) -> None:
    """Replace a text file, in UTF-8 (of names that are not, their bytes), whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def unfinished(path: Path) -> Path:
    """What a file is called until it is whole."""
    name = path.name + ".part"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest() + ".part"
    return path.with_name(name)


def sync_folder(folder: Path) -> None:
    """Puts on the disk which files a folder has: a renamed file may else have its old name after a power loss."""
    with naming(folder):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def checksum(file: BinaryIO, size: int | None = None) -> str:
    """BLAKE2b, 128 bits, of so many bytes of a file from where it stands; None: of all that follow."""
    digest, left = hashlib.blake2b(digest_size=16), size
    while piece := file.read(CHUNK if left is None else min(left, CHUNK)):
        digest.update(piece)
        left = left and left - len(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context in which an OSError that names no file, as that of a full disk, gets to name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class _Raw(io.FileIO):
    """A file that remembers why it could not be written: torch and Pillow say something else, or nothing.

    Attributes:
        failure: None until then.
    """

    failure: OSError | None = None

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise
