"""Pictures and label maps in a pair of folders: what every data set here comes down to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from simfast.data.classes import IGNORE, NUM_CLASSES, TRAIN_IDS, remap

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LABEL_SUFFIXES = (".png", ".bmp")  # label ids do not survive a lossy format


class SegmentationFolder:
    """Images with label maps of the same name (without suffix); item i is (image, label, name), in the order of names.

    image: uint8 [3, H, W], RGB, resized bicubically (Pillow's, which smooths when it shrinks).
    label: uint8 [H, W] of Cityscapes train ids, 255 = don't care, resized to the nearest; or at the file's own size;
        or empty [0] without labels.
    name: str, the image's file name without its suffix.
    """

    def __init__(
        self,
        images: Path,
        labels: Path | None,
        size: tuple[int, int],
        ids: Mapping[int, int] | None = None,
        resize_labels: bool = True,
        class_ids: Sequence[int] | None = None,
    ):
        """
        Args:
            images: folder of pictures (.png .jpg .jpeg .bmp .webp).
            labels: folder of 8-bit one-channel label maps (.png .bmp), or None where there are none or none may be
                used. Those of no image are passed over.
            size: width and height of what comes out, pixels.
            ids: raw id -> train id; None: labels hold train ids.
            resize_labels: False keeps labels at the size of their files, to be scored at.
            class_ids: train ids that can occur; None: those in `ids`, without 255.

        Raises:
            ValueError: a missing or empty folder, an image without a label, two images of one name, a bad id map. An
                item raises it for an unreadable picture, a label of another size than its image, or an unknown id.
                Each names the file.
        """
        self.size = size
        self.resize_labels = resize_labels
        self._ids = dict(TRAIN_IDS if ids is None else ids)
        _check_ids(self._ids, "ids")
        self.class_ids = tuple(sorted(set(self._ids.values()) - {IGNORE} if class_ids is None else class_ids))
        """Train ids that can occur, ascending."""
        self._images = _by_stem(Path(images), IMAGE_SUFFIXES, "an image")
        self._labels = None
        if labels is not None:
            found = _by_stem(Path(labels), LABEL_SUFFIXES, "a label map")
            for name, path in self._images.items():
                if name not in found:
                    raise ValueError(f"{path}: must have a label map, got no {Path(labels) / name}.png (or .bmp)")
            self._labels = [found[name] for name in self._images]
        self.names = list(self._images)
        """File names without suffix, sorted."""
        self._images = list(self._images.values())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, str]:
        picture = _read(self._images[i])
        image = picture.convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        label = torch.empty(0, dtype=torch.uint8)
        if self._labels is not None:
            label = torch.from_numpy(self._label(self._labels[i], picture.size))
        planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        return torch.from_numpy(planes), label, self.names[i]

    def _label(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        picture = _read(path)
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{path}: a label map must have one 8-bit channel, got mode {picture.mode}")
        if picture.size != size:
            raise ValueError(
                f"{path}: a label map must have its image's size {size[0]}x{size[1]}, "
                f"got {picture.size[0]}x{picture.size[1]}"
            )
        label = remap(np.asarray(picture), self._ids, path)  # before resizing, which may lose the id that is wrong
        if self.resize_labels:
            label = np.array(Image.fromarray(label).resize(self.size, Image.Resampling.NEAREST))
        return label


def read_ids(path: Path) -> dict[int, int]:
    """An id map {raw id: train id} from a YAML or JSON file.

    Raises:
        ValueError: the file cannot be read or holds something else; names the file.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: must be a readable YAML or JSON file, got {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: must map raw ids to train ids, got {type(content).__name__}")
    # JSON has no other keys than strings
    ids = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in content.items()}
    _check_ids(ids, path)
    return ids


def _check_ids(ids: Mapping, where: object) -> None:
    for raw, train in ids.items():
        if type(raw) is not int or not 0 <= raw <= 255:
            raise ValueError(f"{where}: raw ids must be whole numbers in 0-255, got {raw!r}")
        if type(train) is not int or train not in TRAIN_IDS:
            raise ValueError(f"{where}: train ids must be in 0-{NUM_CLASSES - 1}, or {IGNORE}, got {raw}: {train!r}")


def _by_stem(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """Files of a folder by their name without suffix, sorted by it."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a folder, got {'a file' if folder.exists() else 'nothing there'}")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.stem, path.name)):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{path}: must be the only {path.stem} beside its suffix, got {files[path.stem].name} too")
        files[path.stem] = path
    if not files:
        raise ValueError(f"{folder}: must hold {what} ({' '.join(suffixes)}), got none")
    return files


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error ...
        raise ValueError(f"{path}: must be a readable picture, got {type(error).__name__}: {error}") from error
