"""The one reader of pictures: what people save, upright and in 8 bits; and labels of their images' size."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from pngs import GREY, GREY_ALPHA, RGB, RGBA, write_png
from trees import ids_map, make_gta5, picture, save

from simfast.data import open_dataset
from simfast.data.pictures import IMAGE_SUFFIXES, is_turned, picture_size, read_image

SIZE = (20, 14)
PIXELS = np.asarray(picture(3))
DEEP = np.random.default_rng(4).integers(0, 65536, (14, 20, 4), np.uint16)
TURNED = (5, 6, 7, 8)


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_plain_pictures_are_read_as_pillow_reads_them(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    picture(0).save(path)
    with Image.open(path) as plain:
        assert np.array_equal(read_image(path), plain.convert("RGB"))


def write_npy(path, array):
    np.save(path, array)


IN_MANY_FORMS = {
    "16-bit grey.png": (lambda path: write_png(path, DEEP[..., 0], 16, GREY), [0, 0, 0]),
    "16-bit grey with alpha.png": (lambda path: write_png(path, DEEP[..., :2], 16, GREY_ALPHA), [0, 0, 0]),
    "16-bit RGB.png": (lambda path: write_png(path, DEEP[..., :3], 16, RGB), [0, 1, 2]),
    "16-bit RGBA.png": (lambda path: write_png(path, DEEP, 16, RGBA), [0, 1, 2]),
    "16-bit grey.tif": (lambda path: tifffile.imwrite(path, DEEP[..., 0]), [0, 0, 0]),
    "16-bit RGB.tiff": (lambda path: tifffile.imwrite(path, DEEP[..., :3], photometric="rgb"), [0, 1, 2]),
    "32-bit grey.tif": (lambda path: tifffile.imwrite(path, DEEP[..., 0].astype(np.int32)), [0, 0, 0]),
    "grey.npy": (lambda path: write_npy(path, DEEP[..., 0]), [0, 0, 0]),
    "RGB.npy": (lambda path: write_npy(path, DEEP[..., :3]), [0, 1, 2]),
    "RGBA.npy": (lambda path: write_npy(path, DEEP), [0, 1, 2]),
    "big-endian.npy": (lambda path: write_npy(path, DEEP.astype(">u2")), [0, 1, 2]),
}


@pytest.mark.parametrize("name", IN_MANY_FORMS)
def test_of_16_bits_the_high_byte_counts_and_alpha_does_not(name, tmp_path):
    write, channels = IN_MANY_FORMS[name]
    write(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.mode, image.size, picture_size(tmp_path / name)) == ("RGB", SIZE, SIZE)
    assert np.array_equal(image, (DEEP >> 8)[..., channels])


def test_8_bit_arrays_grey_palette_alpha_and_cmyk_are_read_as_they_look(tmp_path):
    np.save(tmp_path / "rgb.npy", PIXELS)
    np.save(tmp_path / "grey.npy", PIXELS[..., 0])
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]])).save(tmp_path / "rgba.png")
    Image.fromarray(PIXELS).quantize(64).save(tmp_path / "palette.png")
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert np.array_equal(read_image(tmp_path / "rgb.npy"), PIXELS)
    assert np.array_equal(read_image(tmp_path / "rgba.png"), PIXELS)
    assert np.array_equal(read_image(tmp_path / "cmyk.tif"), PIXELS)
    for name in ("grey.npy", "grey.png"):
        assert np.array_equal(read_image(tmp_path / name), PIXELS[..., [0, 0, 0]])
    assert np.array_equal(read_image(tmp_path / "palette.png"), Image.fromarray(PIXELS).quantize(64).convert("RGB"))
    assert np.abs(np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int) - PIXELS).mean() < 4


# --- upright ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright_and_the_header_alone_tells_their_size(orientation, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    picture(3).save(path, exif=exif(orientation), **({"quality": 100} if suffix == ".jpg" else {"lossless": True}))
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    image = read_image(path)
    assert np.array_equal(image, expected)
    assert image.size == picture_size(path) == (SIZE[::-1] if orientation in TURNED else SIZE)
    assert is_turned(path) == (orientation in TURNED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_grey_tiffs_are_read_upright_packed_or_not(orientation, tmp_path):
    for dtype in (np.uint8, np.uint16):
        for compression in (None, "zlib"):
            pixels = PIXELS[..., 0].astype(dtype) << (8 * np.dtype(dtype).itemsize - 8)
            tags = {"extratags": [(274, "H", 1, orientation, True)], "compression": compression}
            tifffile.imwrite(tmp_path / "a.tif", pixels, **tags)
            tagged = Image.fromarray(PIXELS[..., 0])
            tagged.getexif()[274] = orientation
            assert np.array_equal(read_image(tmp_path / "a.tif").getchannel(0), ImageOps.exif_transpose(tagged))


def test_a_tag_behind_the_pixels_counts_too(tmp_path):
    write_png(tmp_path / "a.png", PIXELS, 8, RGB, late_exif=exif(6).tobytes()[6:])
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(PIXELS, -1))
    assert picture_size(tmp_path / "a.png") == SIZE[::-1]


def test_a_broken_tag_turns_nothing(tmp_path):
    picture(3).save(tmp_path / "a.png", exif=b"Exif\0\0no such thing")
    assert np.array_equal(read_image(tmp_path / "a.png"), PIXELS)
    assert picture_size(tmp_path / "a.png") == SIZE


# --- what is no picture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.png", lambda path: path.write_bytes(b"no"), "must be a readable picture"),
        ("a.npy", lambda path: path.write_bytes(b"no"), "must be a readable picture"),
        ("a.npy", lambda path: None, "must be a readable picture, got FileNotFoundError"),
        ("a.npy", lambda path: np.save(path, np.array([{}])), "must be a readable picture, got ValueError: .*pickle"),
        (
            "a.npy",
            lambda path: np.save(path, PIXELS.transpose(2, 0, 1)),
            r"must be uint8 or .*, got uint8 \[3, 14, 20\]",
        ),
        ("a.npy", lambda path: np.save(path, PIXELS / 255), r"must be uint8 or .*, got float64 \[14, 20, 3\]"),
        (
            "a.tif",
            lambda path: tifffile.imwrite(
                path, np.moveaxis(DEEP[..., :3], 2, 0), photometric="rgb", planarconfig="separate"
            ),
            "in separate planes",
        ),
        ("a.tif", lambda path: tifffile.imwrite(path, np.ones((4, 4), np.float32)), "whole numbers, got floats"),
        (
            "a.tif",
            lambda path: tifffile.imwrite(path, np.full((4, 4), -1, np.int32)),
            "must be in 0-65535, got -1 to -1",
        ),
    ],
)
def test_what_is_no_picture_is_named(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"a\.\w+: .*{message}"):
        read_image(tmp_path / name)


# --- in a data set ---------------------------------------------------------------------------------------------------


def folder_of(root, image, label):
    """A data set of one image, written by `image(path without suffix)`, and its label map."""
    for kind, write in (("images", image), ("labels", label)):
        (root / kind).mkdir(parents=True)
        write(root / kind / "a")
    return open_dataset("folder", root, "train", SIZE, resize_labels=False)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_folder_takes_images_of_every_suffix(suffix, tmp_path):
    def write(path):
        path = path.with_suffix(suffix)
        np.save(path, PIXELS) if suffix == ".npy" else picture(3).save(path)

    data = folder_of(tmp_path, write, lambda path: save(path.with_suffix(".png"), ids_map([0])))
    assert torch.equal(data[0][0], torch.from_numpy(np.asarray(read_image(data.images[0])).transpose(2, 0, 1).copy()))


def test_16_bit_grey_photographs_are_not_white(tmp_path):
    def write(path):
        assert cv2.imwrite(f"{path}.png", DEEP[..., 0])

    data = folder_of(tmp_path, write, lambda path: save(path.with_suffix(".png"), ids_map([0])))
    assert np.array_equal(data.image(0)[0], DEEP[..., 0] >> 8)


def test_a_photograph_turned_by_its_tag_is_read_upright_with_the_label_of_what_is_seen(tmp_path):
    def sideways(path):
        picture(3).transpose(Image.Transpose.ROTATE_90).save(f"{path}.png", exif=exif(6))

    data = folder_of(tmp_path / "upright", sideways, lambda path: save(path.with_suffix(".png"), ids_map([0, 1])))
    image, label, _ = data[0]
    assert np.array_equal(image, PIXELS.transpose(2, 0, 1))
    assert np.array_equal(label, ids_map([0, 1]))

    stored = folder_of(
        tmp_path / "stored", sideways, lambda path: save(path.with_suffix(".png"), ids_map([0], (14, 20)))
    )
    with pytest.raises(
        ValueError, match=r"labels/a\.png: .*image's size 20x14, got 14x20; its EXIF tag turns the image"
    ):
        stored[0]


def test_a_label_with_the_tag_of_its_photograph_is_turned_with_it(tmp_path):
    def sideways(content):
        turned = content.transpose(Image.Transpose.ROTATE_90)
        return lambda path: turned.save(path.with_suffix(".png"), exif=exif(6))

    data = folder_of(tmp_path, sideways(picture(3)), sideways(Image.fromarray(ids_map([0, 1]))))
    assert np.array_equal(data[0][1], ids_map([0, 1]))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 60), None),
        ((98, 61), None),
        ((97, 60), r"must have its image's size 100x60 \(within 2 % a side\), got 97x60$"),
        ((100, 62), r"must have its image's size 100x60 \(within 2 % a side\), got 100x62$"),
        ((60, 100), r"must have its image's size 100x60 \(within 2 % a side\), got 60x100; it is turned by 90 degrees"),
    ],
)
def test_gta5_takes_labels_a_few_pixels_off_but_none_that_is_turned(size, message, tmp_path):
    make_gta5(tmp_path, count=1)
    save(tmp_path / "images/00001.png", picture(0, (100, 60)))
    save(tmp_path / "labels/00001.png", ids_map([7], size))
    data = open_dataset("gta5", tmp_path, "train", SIZE)
    if message is None:
        assert data[0][1].unique().tolist() == [0]
    else:
        with pytest.raises(ValueError, match=rf"labels/00001\.png: a label map {message}"):
            data[0]


def test_a_nearly_square_label_that_is_turned_is_refused(tmp_path):
    make_gta5(tmp_path, count=1)
    save(tmp_path / "images/00001.png", picture(0, (100, 99)))
    save(tmp_path / "labels/00001.png", ids_map([7], (99, 100)))
    with pytest.raises(ValueError, match=r"100x99 .*, got 99x100; it is turned by 90 degrees"):
        open_dataset("gta5", tmp_path, "train", SIZE)[0]
