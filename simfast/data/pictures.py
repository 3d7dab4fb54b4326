"""The one reader of pictures, for training, evaluation, pseudo labels and prediction: upright, 8-bit RGB."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".npy")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy")  # label ids do not survive a lossy format

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Of Pillow: not those that start other programs, whatever a file is called."""
_PLANES, _BITS = 284, 258  # of TIFF
_LATE_TURNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""What a PNG holds behind its pixels where a tool has put the EXIF tag there."""


def read_image(path: Path) -> Image.Image:
    """An image as 8-bit RGB, upright as its EXIF tag says.

    Of 16-bit values, grey or colour, the high byte counts; transparency is ignored. An .npy holds uint8 or uint16
    [H, W], [H, W, 3] or [H, W, 4].

    Raises:
        ValueError: an unreadable file, or no picture of whole numbers in 0-65535; names the file.
    """
    if is_array(path):
        return Image.fromarray(_rgb_of_array(read_array(path), path))
    picture = read_picture(path)
    if picture.mode.startswith("I"):  # Pillow would clip these to 255, where it takes the high byte of 16-bit colours
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path}: grey values must be in 0-65535, got {values.min()} to {values.max()}")
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError(f"{path}: a picture must have whole numbers, got floats")
    with _readable(path):
        return picture.convert("RGB")


def read_picture(path: Path) -> Image.Image:
    """A picture in the mode of its file, decoded to its last pixel and upright.

    Raises:
        ValueError: it cannot be; names the file.
    """
    with _readable(path), Image.open(path, formats=_FORMATS) as picture:
        picture.filename = ""  # with a name it may be mapped, and then width and height of a turned TIFF are mixed up
        picture.load()
        if picture.format == "TIFF" and picture.tag_v2.get(_PLANES) == 2 and max(picture.tag_v2[_BITS]) > 8:
            raise ValueError("channels of 16 bits in separate planes, which Pillow mixes up; save them interleaved")
        if _orientation(picture) != 1:
            ImageOps.exif_transpose(picture, in_place=True)
        return picture


def read_deep(path: Path) -> np.ndarray:
    """The channels of a picture of 16-bit colours, uint16 [H, W, 3 or 4], red first, as stored; or what else it is.

    Pillow keeps the high bytes of such colours alone. So OpenCV reads them.

    Raises:
        ValueError: the file cannot be read; names it.
    """
    import cv2  # here: all else does without it

    with _readable(path):
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path}: must be a readable picture, got a truncated or broken one")
    order = [2, 1, 0, *range(3, pixels.shape[2])] if pixels.ndim == 3 and pixels.shape[2] > 2 else ...
    return pixels[..., order]


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file, in this machine's byte order; errors as `read_picture`."""
    with _readable(path):
        array = np.load(path, allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def is_array(path: Path) -> bool:
    """Whether a file is an .npy by its name."""
    return Path(path).suffix.lower() == ".npy"


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, pixels, by the file's header; errors as `read_picture`."""
    (width, height), turned = _header(path)
    return (height, width) if turned else (width, height)


def is_turned(path: Path) -> bool:
    """Whether an EXIF tag says that the picture is stored on its side; errors as `read_picture`."""
    return _header(path)[1]


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height as stored, and whether they are exchanged by the EXIF tag."""
    if is_array(path):
        with _readable(path):
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            if len(shape) not in (2, 3):
                raise ValueError(f"an array of shape {list(shape)}")
        height, width = shape[1:] if len(shape) == 3 and shape[2] not in (1, 3, 4) else shape[:2]
        return (width, height), False
    with _readable(path), Image.open(path, formats=_FORMATS) as picture:
        if picture.format == "TIFF":  # whose `size` is the upright one in some versions of Pillow
            width, height = (picture.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
        else:
            width, height = picture.size
        if picture.format == "PNG" and "exif" not in picture.info:
            here = picture.fp.tell()
            rest = picture.fp.read()  # a tag there counts, and reading is cheap where decoding is not
            picture.fp.seek(here)
            behind = rest[max(0, rest.rfind(b"IDAT")) :]  # the last of the pixels is soon found, and a small part
            if any(kind in behind for kind in _LATE_TURNS):
                picture.load()
        return (width, height), _orientation(picture) in (5, 6, 7, 8)


def _orientation(picture: Image.Image) -> int:
    """The EXIF tag, 1 where there is none or none that can be read."""
    try:
        exif = Image.Image.getexif(picture)  # that of PNG decodes the whole picture to look behind the pixels
        return exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # of a broken tag nobody can know which side is up, and the pixels are there
        return 1


def _rgb_of_array(pixels: np.ndarray, path: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    grey = pixels.ndim == 2
    if (
        pixels.dtype not in (np.uint8, np.uint16)
        or 0 in pixels.shape
        or not (grey or (pixels.ndim == 3 and pixels.shape[2] in (3, 4)))
    ):
        raise ValueError(
            f"{path}: an image must be uint8 or uint16 [H, W], [H, W, 3] or [H, W, 4], "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, 2) if grey else np.ascontiguousarray(pixels[..., :3])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):  # a pipe would be waited for, and a device may have no end
            raise OSError(f"no regular file but a {'folder' if stat.S_ISDIR(kind) else 'pipe or device'}")
        yield
    except Exception as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error ...
        raise ValueError(f"{path}: must be a readable picture, got {type(error).__name__}: {error}") from error
