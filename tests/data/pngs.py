"""PNG files of every bit depth and colour type, which no library writes all of."""

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def write_png(path, values, bits, kind, palette=None, late_exif=None):
    """
    Args:
        path: file to write.
        values: integer [H, W], or [H, W, C] for kinds of several channels.
        bits: 1, 2, 4, 8 or 16 a channel.
        kind: a colour type.
        palette: colours, for PALETTE.
        late_exif: EXIF bytes to put behind the pixels.
    """
    height, width = values.shape[:2]
    samples = values.reshape(height, -1)
    if bits == 16:
        rows = samples.astype(">u2").view(np.uint8)
    else:  # the highest bits first, each row padded to whole bytes
        rows = np.unpackbits(samples.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
        rows = np.packbits(rows, axis=1)
    pixels = zlib.compress(np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    chunks += [(b"PLTE", np.array(palette, np.uint8).tobytes())] if palette is not None else []
    chunks += [(b"IDAT", pixels)] + ([(b"eXIf", late_exif)] if late_exif else []) + [(b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in chunks:
            file.write(struct.pack(">I", len(content)) + name + content)
            file.write(struct.pack(">I", zlib.crc32(name + content)))
