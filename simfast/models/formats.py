"""What a file is that torch cannot read, in words; and safetensors, which it does not read."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from simfast.runtime.files import replacing

SAFETENSORS = ".safetensors"
CHECKSUM = "simfast.blake2b"
FIRST_BYTES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for: `git lfs pull` fetches that",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ\0": "an xz archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"\x89HDF\r\n": "an HDF5 file, which is no network of PyTorch",
    b"\x93NUMPY": "a NumPy array",
}


class Safetensors(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def described(path: Path, error: Exception) -> str:
    """What a file is that torch.load does not take, in words for an error.

    Args:
        path: the file.
        error: what torch.load raised.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head:
        return "an empty file"
    for first, words in FIRST_BYTES.items():
        if head.startswith(first):
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page: what was downloaded is not the file"
    if is_safetensors(path):
        return "a safetensors file, which has weights alone and is no checkpoint"
    if head.startswith(b"PK"):
        return _described_zip(path, error)
    # The text of torch's error names the class, and no public function does for all its formats.
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
        return _object_of(found[1])
    if head.startswith(b"\x80"):
        return f"a pickle that is no state dict ({type(error).__name__})"
    if b"\0" not in head and len(text.split()) > 1 and head.isascii():
        return f"a text file, which begins with {head.splitlines()[0][:60].decode()!r}"
    return type(error).__name__


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header in JSON, and a brace."""
    with open(path, "rb") as file:
        head, size = file.read(9), file.seek(0, 2)
    return len(head) == 9 and 2 <= int.from_bytes(head[:8], "little") <= size - 8 and head[8:] == b"{"


def read_safetensors(path: Path) -> Safetensors:
    """
    Raises:
        ValueError: the file is damaged; the package safetensors is not installed.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        tensors = _library().torch.load(content)
        metadata = dict(json.loads(content[8:start]).get("__metadata__") or {})
    except (ValueError, KeyError, OverflowError, _library().SafetensorError) as error:
        raise ValueError(f"{path}: must be a whole safetensors file, got a damaged one ({error})") from None
    if metadata.get(CHECKSUM, checksum := _checksum(content)) != checksum:
        raise ValueError(f"{path}: must be as it was written, got a damaged file, of another checksum")
    return Safetensors(tensors, metadata)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A file of tensors and of texts about them, with a checksum of the tensors.

    Raises:
        OSError: what writing raises.
        ValueError: the package safetensors is not installed.
    """
    save = _library().torch.save
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = dict(metadata) | {"format": "pt"}
    content = save(whole, about | {CHECKSUM: _checksum(save(whole, about))})
    with replacing(path) as file:
        file.write(content)


def _checksum(content: bytes) -> str:
    """Of all that follows the header, which itself holds the checksum."""
    start = 8 + int.from_bytes(content[:8], "little")
    return hashlib.blake2b(memoryview(content)[start:], digest_size=16).hexdigest()


def _library() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ValueError("safetensors: needs the package of this name: pip install safetensors") from error
    return safetensors


def _described_zip(path: Path, error: Exception) -> str:
    if not zipfile.is_zipfile(path):
        return "a file that is cut short"
    names = zipfile.ZipFile(path).namelist()
    inside = [name.partition("/")[2] for name in names]
    if "data.pkl" not in inside:
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"a zip archive that torch.save did not write (of {few or 'nothing'}): unpack it"
    if "constants.pkl" in inside:
        return "a TorchScript archive, a program and not its weights: save its state_dict()"
    found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    return _object_of(found[1]) if found else str(error) if isinstance(error, ValueError) else type(error).__name__


def _object_of(name: str) -> str:
    return (
        f"an object of the class {name}, and objects can run code as they are loaded: where the file comes from, save "
        f"the network's state_dict() in its place"
    )
