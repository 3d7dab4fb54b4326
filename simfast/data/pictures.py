"""Pictures in files."""

from pathlib import Path

from PIL import Image


def read_picture(path: Path) -> Image.Image:
    """A picture, decoded to its last pixel.

    Raises:
        ValueError: it cannot be.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # Pillow's decoders raise whatever they meet: OSError, SyntaxError, struct.error ...
        raise ValueError(f"{path}: must be a readable picture, got {type(error).__name__}: {error}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height that a picture's header gives, pixels; errors as `read_picture`."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except Exception as error:
        raise ValueError(f"{path}: must be a readable picture, got {type(error).__name__}: {error}") from error
