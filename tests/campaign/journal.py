"""What a disk may hold after a power loss: the recorded file operations of a program, replayed up to one of them.

Two rules for names. "journal": as ext4 and XFS do, every sync puts all that was renamed, made and removed before it on
the disk, and what came later is there up to some point. "folder": as little as POSIX promises, a folder's names are on
the disk once that folder is synced; of later ones, each folder has them up to some point of its own. What a file holds
is on the disk once the file is synced; else it may be as at its last sync (of a new file: empty), have its length but
zeros, be cut anywhere, or be whole.
"""

import functools
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

STATES = (  # rule for names, how many of those not synced are there, what files hold
    *(("folder", "all", "lost"), ("folder", "all", "zeros"), ("folder", "all", "cut"), ("folder", "all", "whole")),
    *(("folder", "none", "whole"), ("folder", "none", "lost"), ("journal", "none", "lost")),
    *(("folder", "some", "any"), ("journal", "some", "any"), ("folder", "some", "whole")),
)

SAID = ("log.txt", "console.txt")
"""What only people read: a state that differs in these alone, or in TensorBoard's files, is no other state."""


class Operation(NamedTuple):
    """One line of the record; see shim.c."""

    what: str
    inode: int
    offset: int
    path: str
    other: str
    data: bytes


class State(NamedTuple):
    """A state of the disk: after so many operations, by one of STATES."""

    after: int
    kind: int


def read(record: Path, root: Path) -> list[Operation]:
    """The operations under `root`, in order, with paths from there."""
    operations, length = [], len(str(root)) + 1
    with open(record, "rb") as file:
        while head := file.readline():
            what, inode, offset, size, path, other = head.decode().rstrip("\n").split("\t")
            data = file.read(int(size))
            path, other = path.removesuffix(" (deleted)")[length:], other[length:]
            operations.append(Operation(what, int(inode), int(offset), path, other, data))
    return operations


@dataclass(eq=False)
class _File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    made: dict[str, bytes] = field(default_factory=dict)  # by fate, until it changes


@dataclass(eq=False)
class _Folder:
    """`names` are on the disk; `later` are not yet: (number of the operation, name, what has the name from then on)."""

    names: dict = field(default_factory=dict)
    later: list = field(default_factory=list)

    def now(self, upto: float) -> dict:
        names = dict(self.names)
        for number, name, node in self.later:
            if number <= upto:
                names.pop(name, None) if node is None else names.__setitem__(name, node)
        return names


class Disk:
    """The disk while a program runs.

    Args:
        before: what the folder held when it was started: content by path, None for a folder.
        inodes: of the files among them.
    """

    def __init__(self, before: dict[str, bytes | None], inodes: dict[int, str]):
        self.root, self.number, self.committed = _Folder(), 0, 0
        self.files: dict[int, _File] = {}
        for path in sorted(before):
            folder, name = self._place(path)
            content = before[path]
            folder.names[name] = _Folder() if content is None else _File(bytearray(content), content)
        for inode, path in inodes.items():
            self.files[inode] = self._find(path)

    def apply(self, one: Operation) -> None:
        self.number += 1
        if one.what in ("create", "mkdir"):
            node = _File() if one.what == "create" else _Folder()
            self.files[one.inode] = node if one.what == "create" else None
            self._name(one.path, node)
        elif one.what in ("write", "truncate") and (file := self.files.get(one.inode)):
            if one.what == "write":
                file.content.extend(bytes(max(0, one.offset - len(file.content))))
                file.content[one.offset : one.offset + len(one.data)] = one.data
            else:
                file.content[one.offset :] = bytes(max(0, one.offset - len(file.content)))
            file.made.clear()
        elif one.what in ("rename", "link"):
            self._name(one.other, self._find(one.path))
            if one.what == "rename":
                self._name(one.path, None)
        elif one.what == "remove":
            self._name(one.path, None)
        elif one.what == "sync" and (file := self.files.get(one.inode)):
            file.synced, self.committed = bytes(file.content), self.number
            file.made.clear()
            self._way(one.path)
        elif one.what == "syncdir":
            folder, self.committed = self._find(one.path), self.number
            folder.names, folder.later = folder.now(self.number), []
            self._way(one.path + "/.")

    def state(self, kind: int, rng: random.Random) -> dict[str, bytes | None]:
        """What may be found after a power loss now: content by path, None for a folder."""
        rule, names, data = STATES[kind]
        upto = {"all": self.number, "none": self.committed, "some": rng.randint(self.committed, self.number)}[names]
        found: dict[str, bytes | None] = {}
        fates: dict[int, bytes] = {}

        def walk(folder: _Folder, path: str) -> None:
            own = upto
            if rule == "folder" and names != "all":  # the end of the list, or somewhere in it
                own = rng.choice([0, *(n for n, *_ in folder.later)]) if names == "some" else 0
            for name, node in sorted(folder.now(own).items()):
                found[path + name] = None
                if isinstance(node, _Folder):
                    walk(node, f"{path}{name}/")
                    continue
                if id(node) not in fates:
                    fates[id(node)] = _fate(node, data, rng)
                found[path + name] = fates[id(node)]

        walk(self.root, "")
        return found

    def _name(self, path: str, node: _File | _Folder | None) -> None:
        folder, name = self._place(path)
        folder.later.append((self.number, name, node))

    def _place(self, path: str) -> tuple[_Folder, str]:
        *parents, name = path.split("/")
        folder = self.root
        for parent in parents:
            folder = folder.now(self.number)[parent]
        return folder, name

    def _find(self, path: str) -> _File | _Folder:
        folder, name = self._place(path)
        return folder.now(self.number)[name] if name else self.root

    def _way(self, path: str) -> None:
        """What is synced can be reached: the folders on the way to it are on the disk, too."""
        folder = self.root
        for parent in path.split("/")[:-1]:
            below = folder.now(self.number).get(parent)
            if not isinstance(below, _Folder):
                return
            folder.names[parent] = below
            folder.later = [entry for entry in folder.later if entry[2] is not below]
            folder = below


def _fate(file: _File, data: str, rng: random.Random) -> bytes:
    data = rng.choice(("lost", "zeros", "cut", "whole")) if data == "any" else data
    if "whole" not in file.made:
        whole = bytes(file.content)
        file.made["whole"] = file.synced if whole == file.synced else whole
    whole = file.made["whole"]
    if whole is file.synced or data == "lost":
        return file.synced
    same = len(file.synced) if whole.startswith(file.synced) else 0  # what was synced stays, whatever is added behind
    if data == "cut":
        return whole[: rng.randint(same, len(whole))]
    if data == "zeros" and "zeros" not in file.made:
        file.made["zeros"] = whole[:same] + bytes(len(whole) - same)
    return file.made[data]


def states(operations: list[Operation], before: dict, inodes: dict[int, str], seed: int = 0) -> Iterator[State]:
    """The states after each operation that differ. Of writes in a row to one file, the last and one in the middle
    count."""
    disk, seen = Disk(before, inodes), set()
    for number, one in enumerate(operations):
        disk.apply(one)
        following = operations[number + 1] if number + 1 < len(operations) else None
        in_row = following and (one.what, one.inode) == (following.what, following.inode) == ("write", one.inode)
        if in_row and random.Random(number).random() > 0.02:
            continue
        for kind in range(len(STATES)):
            digest = _digest(disk.state(kind, random.Random(f"{seed} {number} {kind}")))
            if digest not in seen:
                seen.add(digest)
                yield State(number + 1, kind)


def restore(
    operations: list[Operation], before: dict, inodes: dict[int, str], state: State, out: Path, seed: int = 0
) -> str:
    """Writes a state into an empty folder; returns what it is, in words."""
    disk = Disk(before, inodes)
    for one in operations[: state.after]:
        disk.apply(one)
    for path, content in disk.state(state.kind, random.Random(f"{seed} {state.after - 1} {state.kind}")).items():
        if content is None:
            (out / path).mkdir(parents=True, exist_ok=True)
        else:
            (out / path).write_bytes(content)
    last, (rule, names, data) = operations[state.after - 1], STATES[state.kind]
    what = f"{last.what} {last.path} {last.other}".rstrip()
    return f"operation {state.after} of {len(operations)} ({what}); names: {rule}, {names}; files: {data}"


def _digest(found: dict[str, bytes | None]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, content in found.items():
        if (content and path.endswith(SAID)) or "/tensorboard/" in path:
            content = b"something"
        own = b"folder" if content is None else _hash(content)
        digest.update(path.encode() + b"\0" + own)
    return digest.digest()


@functools.lru_cache(maxsize=256)
def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()
