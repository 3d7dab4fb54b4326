"""What is stored in a label file: ids, or colours as whole numbers, in every form that people save them in."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from simfast.config.classes import RGB
from simfast.data.pictures import is_array, read_array, read_deep, read_picture

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_LOSSY = ("jpeg", "tiff_jpeg", "webp")


class LabelPixels(NamedTuple):
    """What a label file holds.

    Attributes:
        values: integer [H, W]: what the one channel holds, or the colours, packed.
        colour_bits: 0: values are of one channel; 8 or 16: each is red + (green << bits) + (blue << 2 bits).
        white: the largest value that a channel can hold; 0 where it cannot be a colour: one that is signed or of more
            than 16 bits.
        palette: the colours of indices 0, 1 ...; None where there is no palette.
    """

    values: np.ndarray
    colour_bits: int
    white: int
    palette: list[RGB] | None = None

    def channels(self, value: int) -> RGB:
        """Red, green and blue, as stored, of a value; of one channel it is grey."""
        bits, mask = self.colour_bits, (1 << self.colour_bits) - 1
        return (value & mask, value >> bits & mask, value >> 2 * bits & mask) if bits else (value,) * 3

    def colour(self, value: int) -> RGB | None:
        """The colour in 0-255 of a value, without the palette; None of a value that is none."""
        if self.white == 0:
            return None
        parts = [divmod(channel * 255, self.white) for channel in self.channels(value)]
        return None if any(rest for _, rest in parts) else tuple(part for part, _ in parts)


def read_label_pixels(path: Path) -> LabelPixels:
    """What a label file holds, upright as its EXIF tag says.

    Raises:
        ValueError: an unreadable file, a picture that is no label map; names the file.
    """
    if is_array(path):
        return _of_array(read_array(path), path)
    picture = read_picture(path)
    if picture.format not in ("PNG", "BMP", "TIFF") or picture.info.get("compression") in _LOSSY:
        came = f"{picture.format} {picture.info.get('compression', '')}".strip()
        raise ValueError(f"{path}: a label map must be a PNG, BMP, TIFF or NPY that loses nothing, got {came}")
    bits = _bits(picture, path)
    if picture.mode in ("1", "L", "LA", "P", "PA"):
        return _of_one_channel(picture, bits, path)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.dtype == np.int32 and picture.format == "TIFF" and _tag(picture, _SAMPLE_FORMAT, (1,))[0] != _SIGNED:
            values = values.view(np.uint32)
        return LabelPixels(values, 0, 0xFFFF if values.dtype == np.uint16 and bits == 16 else 0)
    if picture.mode in ("RGB", "RGBA"):
        return _of_deep_colours(picture, path) if bits == 16 else _packed(np.asarray(picture), path)
    raise ValueError(f"{path}: a label map must be grey, palette or RGB of whole numbers, got mode {picture.mode}")


def _bits(picture: Image.Image, path: Path) -> int:
    """Bits of a channel in the file: of fewer than 8 Pillow scales the values, of 16-bit colours it drops the half."""
    if picture.format == "PNG":
        return _head(path)[24]
    if picture.format == "TIFF":
        if _tag(picture, _PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO:  # Pillow would turn the ids upside down
            raise ValueError(f"{path}: a label map must be a TIFF whose black is zero, got one whose white is")
        return _tag(picture, _BITS_PER_SAMPLE, (1,))[0]
    bits = int.from_bytes(_head(path)[28:], "little")
    if picture.mode in ("1", "L") and bits != {"1": 1, "L": 8}[picture.mode]:  # Pillow reads these wrongly
        raise ValueError(f"{path}: a grey BMP must have 8 bits or be black and white of 1, got {bits}; save it as PNG")
    return 8 if picture.mode.startswith("RGB") else bits


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(30)


def _tag(picture: Image.Image, tag: int, default):
    return picture.tag_v2.get(tag, default)


def _of_one_channel(picture: Image.Image, bits: int, path: Path) -> LabelPixels:
    values = np.asarray(picture)
    if picture.mode in ("LA", "PA"):
        _require_opaque(values[..., 1], path)
        values = np.ascontiguousarray(values[..., 0])
    if picture.mode == "1":
        values = values.astype(np.uint8)
    elif picture.mode.startswith("L") and bits < 8:
        values = values // (255 // ((1 << bits) - 1))
    elif picture.mode == "L" and picture.format == "TIFF" and _tag(picture, _SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        values = values.view(np.int8)
    palette = None
    if picture.mode.startswith("P"):
        colours = picture.getpalette("RGB")
        palette = list(zip(colours[::3], colours[1::3], colours[2::3], strict=True))
    white = 0 if values.dtype == np.int8 else (1 << min(bits, 8)) - 1
    return LabelPixels(values, 0, white, palette)


def _of_deep_colours(picture: Image.Image, path: Path) -> LabelPixels:
    """Of 16-bit colours."""
    pixels = read_deep(path)
    high = np.asarray(picture)
    # OpenCV knows nothing of EXIF tags, and other kinds of file may be read in another way too.
    if (
        pixels.dtype != np.uint16
        or pixels.shape[:2] != high.shape[:2]
        or ((pixels >> 8)[..., :3] != high[..., :3]).any()
    ):
        raise ValueError(f"{path}: a label map of 16-bit colours must be a plain PNG or TIFF, not turned by a tag")
    return _packed(pixels, path)


def _of_array(values: np.ndarray, path: Path) -> LabelPixels:
    if values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype in (np.uint8, np.uint16) and values.size:
        return _packed(values, path)
    if values.ndim == 3:
        values = values[0] if values.shape[0] == 1 else values[..., 0] if values.shape[2] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "biu" or not values.size:
        raise ValueError(
            f"{path}: a label map must be an integer or boolean [H, W], or colours uint8 [H, W, 3], "
            f"got {values.dtype} {list(values.shape)}"
        )
    if values.dtype == bool:
        return LabelPixels(values.view(np.uint8), 0, 1)
    white = {np.uint8: 0xFF, np.uint16: 0xFFFF}.get(values.dtype.type, 0)
    return LabelPixels(values, 0, white)


def _packed(pixels: np.ndarray, path: Path) -> LabelPixels:
    """Of uint8 or uint16 [H, W, 3 or 4]."""
    if pixels.shape[2] == 4:
        _require_opaque(pixels[..., 3], path)
    padded = np.zeros((*pixels.shape[:2], 4), pixels.dtype)
    padded[..., :3] = pixels[..., :3]
    bits = 8 * pixels.itemsize
    return LabelPixels(padded.view(f"<u{4 * pixels.itemsize}")[..., 0], bits, (1 << bits) - 1)


def _require_opaque(alpha: np.ndarray, path: Path) -> None:
    if alpha.min() != alpha.max():
        raise ValueError(
            f"{path}: a label map's transparency must be the same everywhere, got {alpha.min()} to {alpha.max()}; "
            "paint what is transparent with an id or a colour of its own, and save without transparency"
        )
