"""Prepared data: resized images and train ids as plain .npy shards that are mapped, not decoded; `prepare` writes them.

CACHE/PART/index.json says what the shards hold, with a checksum of each; a part is one `Description`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simfast.config.classes import Classes
from simfast.data.dataset import Description, SegmentationDataset
from simfast.data.labels import LabelCoding
from simfast.data.listing import nfc
from simfast.data.processes import spread

FORMAT = 1


class CachedDataset:
    """What a prepared part holds; items, `names`, `class_ids` and `size` as `SegmentationDataset`'s, byte for byte.

    Attributes:
        part: the folder of the part.
        index: its index.json.
        problems, passed_over: as `SegmentationDataset`'s.
    """

    def __init__(self, part: Path, index: dict[str, Any], labelled: bool, coding: LabelCoding):
        """
        Args:
            part: folder that `prepare` wrote.
            index: what `read_index` gives of it.
            labelled: False leaves the part's labels unread.
            coding: what label files hold, of which the class list counts here.

        Raises:
            ValueError: a shard that is missing or has another length than written; names the file.
        """
        self.part, self.index, self.coding = part, index, coding
        self.names: list[str] = index["names"]
        self.class_ids = tuple(index["class_ids"])
        self.size = tuple(index["description"]["size"])
        self.problems: tuple[str, ...] = ()
        self.passed_over: tuple[str, ...] = ()
        self._labelled, self._replaced = labelled, None
        self._maps: dict[str, np.ndarray] = {}
        for shard in index["shards"]:
            for file in (shard["images"], shard["labels"]):
                path = part / file["file"] if file else part
                if file and (not path.is_file() or path.stat().st_size != file["bytes"]):
                    raise ValueError(f"{path}: must have {file['bytes']} bytes, as prepared; run `simfast prepare`")

    @property
    def classes(self) -> Classes:
        """The class list."""
        return self.coding.classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, str]:
        return self.image(i), self.label(i), self.names[i]

    def image(self, i: int) -> Tensor:
        """The image of item i alone, uint8 [3, H, W]: a view of the file."""
        number, place = divmod(i, self.index["shard_items"])
        return torch.from_numpy(self._map(self.index["shards"][number]["images"]["file"])[place])

    def label(self, i: int) -> Tensor:
        """The label map of item i alone, uint8 [H, W]: a view of the file; empty [0] where none are read."""
        if self._replaced is not None:
            return self._replaced.label(i)
        if not self._labelled:
            return torch.empty(0, dtype=torch.uint8)
        number, place = divmod(i, self.index["shard_items"])
        labels = self.index["shards"][number]["labels"]
        pixels = self._map(labels["file"])
        if labels["shapes"] is None:
            return torch.from_numpy(pixels[place])
        ends = np.cumsum([height * width for height, width in labels["shapes"]])
        height, width = labels["shapes"][place]
        return torch.from_numpy(pixels[ends[place] - height * width : ends[place]].reshape(height, width))

    @property
    def read_from(self) -> dict[str, str]:
        """The folders that images and labels come from."""
        labels = {"labels": str(self.part)} if self._labelled else {}
        return {"images": str(self.part)} | (self._replaced.read_from if self._replaced else labels)

    def with_labels(self, folder: Path, resize_labels: bool = True) -> "CachedDataset":
        """The same with label maps from files; arguments and errors as `SegmentationDataset.with_labels`."""
        unlabelled = SegmentationDataset(self.names, (), None, self.size, self.coding)
        other = CachedDataset(self.part, self.index, False, self.coding)
        other._replaced = unlabelled.with_labels(folder, resize_labels)
        other.problems, other.passed_over = other._replaced.problems, self.passed_over
        return other

    def _map(self, file: str) -> np.ndarray:
        if file not in self._maps:
            # Copy-on-write: torch wants memory that it may write to, and what it wrote would stay out of the file.
            self._maps[file] = np.asarray(np.load(self.part / file, mmap_mode="c"))
        return self._maps[file]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # each process maps the files itself


def open_cached(
    cache: Path, description: Description, files: SegmentationDataset | None, coding: LabelCoding
) -> CachedDataset:
    """A prepared part.

    Args:
        cache: folder of parts.
        description: which part; one prepared with labels also serves where they may not be read.
        files: the data set in its files, which the part must be made from; None where they are not at hand.
        coding: what its label files hold.

    Raises:
        ValueError: no such part, an unfinished one, or one made from other files.
    """
    kinds = [description]
    if not description.labelled:
        kinds += [replace(description, labelled=True, resize_labels=resize) for resize in (True, False)]
    part = next((part for kind in kinds if (part := cache / part_name(kind)) and (part / "index.json").is_file()), None)
    if part is None:
        there = ", ".join(path.parent.name for path in sorted(cache.glob("*/index.json"))) or "nothing"
        unfinished = " unfinished and" if (cache / part_name(description)).is_dir() else ""
        raise ValueError(
            f"{cache / part_name(description)}: must be a prepared part, got it{unfinished} not among what is there "
            f"({there}); run `simfast prepare` with the same settings, or read the files with --cache None"
        )
    index = read_index(part)
    if files is not None:
        require_same_files(part, index, files)
    dataset = CachedDataset(part, index, description.labelled, coding)
    if files is not None:
        dataset.passed_over = files.passed_over
    return dataset


def part_name(description: Description) -> str:
    """The folder of a part: its description in words, and a hash of all of it."""
    digest = hashlib.blake2b(json.dumps(description.to_dict(), sort_keys=True).encode(), digest_size=4)
    return f"{description}-{digest.hexdigest()}"


def read_index(part: Path) -> dict[str, Any]:
    """What a finished part holds.

    Raises:
        ValueError: index.json is missing, broken, or of another version.
    """
    path = part / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: must be the index of a prepared part, got {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path}: must have format {FORMAT}; delete {part} and run `simfast prepare` again")
    return index


def fingerprint(names: Sequence[str], files: Sequence[Path]) -> str:
    """A hash of names and file lengths: enough to tell that files were exchanged, without reading them.

    Raises:
        ValueError: a missing file.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, path in zip(names, files, strict=True):
        try:
            digest.update(f"{name}\0{path.stat().st_size}\n".encode())
        except OSError as error:
            raise ValueError(f"{path}: must be a readable file, got {error}") from error
    return digest.hexdigest()


def require_same_files(part: Path, index: dict[str, Any], files: SegmentationDataset) -> None:
    """
    Raises:
        ValueError: the part was made from files of other names or lengths; names the first.
    """
    where, remedy = files.read_from["images"], f"delete {part} and run `simfast prepare` again, or use another cache"
    prepared = index["names"]  # as older versions wrote them, composed in any way
    if [nfc(name) for name in files.names] != [nfc(name) for name in prepared]:
        differing = sorted({nfc(name) for name in prepared} ^ {nfc(name) for name in files.names})
        came = f"only in one of them: {differing[0]} ..." if differing else "in another order"
        raise ValueError(
            f"{part}: must be made from the files in {where}, got {len(prepared)} names prepared and "
            f"{len(files)} there ({came}); {remedy}"
        )
    for number, shard in enumerate(index["shards"]):
        first = number * index["shard_items"]
        for kind, paths in (("images", files.images), ("labels", files.labels)):
            if paths is None or shard[kind] is None:
                continue
            here = slice(first, first + index["shard_items"])
            if fingerprint(prepared[here], paths[here]) != shard[kind]["made_from"]:
                raise ValueError(
                    f"{part}: must be made from the files in {files.read_from[kind]}, got other lengths of the {kind} "
                    f"from {files.names[first]} on; {remedy}"
                )


def verify(part: Path, workers: int = 0) -> list[str]:
    """Reads every shard of a part again; returns a sentence for each that is missing or not as written.

    Raises:
        ValueError: no readable index.
    """
    index = read_index(part)
    found = spread(_verify_shard, part, index["shards"], workers, len(index["shards"]), f"verify {part.name}", "shard")
    return sorted(problem for problems in found for problem in problems)


def _verify_shard(part: Path, shard: dict[str, Any], tick) -> list[str]:
    problems = []
    for file in (shard["images"], shard["labels"]):
        if file:
            path = part / file["file"]
            if not path.is_file():
                problems.append(f"{path}: must be there, as prepared; run `simfast prepare`")
            elif checksum(path) != file["checksum"]:
                problems.append(f"{path}: its checksum is not the prepared one; delete it and run `simfast prepare`")
    tick()
    return problems


def checksum(path: Path) -> str:
    """BLAKE2b of a file's bytes, 128 bits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
