"""What the index.json of a prepared part holds; all of it is checked where it is read."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from simfast.config.classes import IGNORE
from simfast.data.dataset import Description
from simfast.data.listing import inside

FORMAT = 2
"""Since 2, every item has a checksum."""
INDEX_FILE = "index.json"

_Size = tuple[PositiveInt, PositiveInt]
_Whole = Annotated[int, Field(ge=0)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class ShardFile(_Checked):
    """A file of a shard: an .npy array, whose items lie one behind the other at its end.

    Attributes:
        file: its name.
        bytes: its length.
        checksum: of the whole file; see `simfast.runtime.files.checksum`.
        made_from: `simfast.data.cache.fingerprint` of the files that were read.
        crc32: zlib.crc32 of each item; None from format 1.
        shapes: height and width of each label map; None of images, and from format 1 where all are equal.
    """

    file: str
    bytes: PositiveInt
    checksum: str
    made_from: str
    crc32: list[_Whole] | None = None
    shapes: list[_Size] | None = None


class Shard(_Checked):
    """Items that lie in a file together.

    Attributes:
        items: how many.
        images, labels: their files; no labels where none were prepared.
    """

    items: PositiveInt
    images: ShardFile
    labels: ShardFile | None


class Index(_Checked):
    """The index of a part.

    Attributes:
        format: which version of this wrote it.
        description: of the data.
        read_from: folders of images and labels, where they were.
        pillow: version of the library that resized.
        class_ids: train ids that can occur.
        shard_items: items in each shard but the last.
        names: of the items.
        shards: in the order of their items.
    """

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    description: Description
    read_from: dict[str, str]
    pillow: str
    class_ids: list[Annotated[int, Field(ge=0, lt=IGNORE)]]
    shard_items: PositiveInt
    names: Annotated[list[str], Field(min_length=1)]
    shards: list[Shard]

    @model_validator(mode="after")
    def _fits_together(self) -> "Index":
        if len(set(self.names)) < len(self.names):
            raise ValueError("names must be each item's own")
        for name in self.names:
            inside(name, "names")
        counts = [min(self.shard_items, left) for left in range(len(self.names), 0, -self.shard_items)]
        if [shard.items for shard in self.shards] != counts:
            raise ValueError(f"shards must hold the {len(self.names)} items that have names")
        for number, shard in enumerate(self.shards):
            if (shard.labels is not None) != self.description.labelled:
                raise ValueError("shards must have labels where the description says so")
            for kind, file in (("images", shard.images), ("labels", shard.labels)):
                if file:
                    self._require_fitting(kind, number, shard.items, file)
        return self

    def _require_fitting(self, kind: str, number: int, items: int, file: ShardFile) -> None:
        # A name that is made, not taken, leads nowhere else.
        if file.file != file_name(kind, number):
            raise ValueError(f"shard {number} must be in {file_name(kind, number)}, got {file.file!r}")
        for key, values in (("crc32", file.crc32), ("shapes", file.shapes)):
            if values is not None and len(values) != items:
                raise ValueError(f"{file.file} must have {items} {key}, got {len(values)}")
        if file.crc32 is None and self.format > 1:
            raise ValueError(f"{file.file} must have crc32 of its items")
        width, height = self.description.size
        pixels = 3 * width * height * items
        if kind == "labels":
            shapes = file.shapes or ([(height, width)] * items if self.description.resize_labels else [])
            pixels = sum(high * wide for high, wide in shapes)
        if file.bytes < pixels:
            raise ValueError(f"{file.file} must have room for {pixels} bytes of pixels, got {file.bytes}")


def part_name(description: Description) -> str:
    """The folder of a part: its description in words, and a hash of all of it."""
    digest = hashlib.blake2b(json.dumps(description.to_dict(), sort_keys=True).encode(), digest_size=4)
    return f"{description}-{digest.hexdigest()}"


def file_name(kind: str, number: int) -> str:
    """Of a shard's images or labels."""
    return f"{kind}-{number:05d}.npy"


def read_index(part: Path) -> Index:
    """What a finished part holds.

    Raises:
        ValueError: index.json is missing, damaged or of another part, or says what cannot be; names the file and key.
    """
    path = part / INDEX_FILE
    try:
        index = Index.model_validate_json(path.read_bytes())
        if part_name(index.description) != part.name:
            raise ValueError(f"that of {part_name(index.description)}, by which its folder is not named")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: must be the index of a prepared part, got {_in_a_line(error)}; run `simfast prepare`"
        ) from error
    return index


def read_record(path: Path) -> Shard | None:
    """What was kept of a finished shard of an unfinished part; None where there is nothing, or it is damaged."""
    try:
        return Shard.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _in_a_line(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    came: Any = "" if first["type"] in ("json_invalid", "value_error") else f", not {first['input']!r:.60}"
    return f"{key}: {first['msg']}{came}" if key else first["msg"].removeprefix("Value error, ")
