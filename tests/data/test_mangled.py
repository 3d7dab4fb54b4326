"""Files in which a bit is turned, that are cut short or made up: one line that names the file, or what they hold."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import ids_map, picture, save

from simfast.config.classes import CITYSCAPES, classes_of
from simfast.data import open_dataset
from simfast.data.check import check_part
from simfast.data.classes import read_ids
from simfast.data.list_files import read_list

SIZE = (10, 7)
IMAGES = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "tif": ("TIFF", {}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "npy": (None, {}),
}
often = settings(
    max_examples=60,
    deadline=10_000,  # none hangs
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def changes(draw):
    """What happens to a file: bits that are turned, an end that is missing, bytes put in, bytes that are zero."""
    kind = draw(st.sampled_from(["turn", "cut", "insert", "zero"]))
    return kind, draw(st.floats(0, 0.999)), draw(st.binary(min_size=1, max_size=20))


def mangled(content, change):
    kind, share, extra = change
    at = int(share * len(content))
    if kind == "turn":
        return content[:at] + bytes([content[at] ^ (1 << extra[0] % 8)]) + content[at + 1 :]
    if kind == "insert":
        return content[:at] + extra + content[at:]
    return content[:at] + (bytes(len(content) - at) if kind == "zero" else b"")


def encoded(pixels, format, options):
    file = io.BytesIO()
    if format is None:
        np.save(file, pixels)
    else:
        Image.fromarray(pixels).save(file, format=format, **options)
    return file.getvalue()


def attempt(read, *arguments):
    """What read(*arguments) gives, and its error's text; one of them is None."""
    try:
        return read(*arguments), None
    except ValueError as error:
        return None, str(error)


def in_one_line(report, path):
    """The problems of a part that is this one file."""
    for problem in report.problems:
        assert problem.startswith(f"{path}: ")
        assert len(problem.splitlines()) == 1
        assert len(problem) < 1000
    return report.problems


@pytest.mark.parametrize("suffix", IMAGES)
def test_a_mangled_image_is_named_or_read(suffix, tmp_path):
    whole = encoded(np.asarray(picture(0)), *IMAGES[suffix])
    path = tmp_path / f"train/images/a.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(whole)
    data = open_dataset("folder", tmp_path, "train", SIZE, labelled=False)
    right = data.image(0)

    @often
    @given(changes())
    def check(change):
        path.write_bytes(mangled(whole, change))
        problems = in_one_line(check_part("folder", tmp_path, "train", SIZE, 0, labelled=False), path)
        if not problems and suffix == "png":  # it has checksums
            assert (data.image(0) == right).all()
        if not problems and change[0] == "cut":
            assert (data.image(0) == right).all()

    check()


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGES if suffix not in ("jpg", "webp")])
def test_a_mangled_label_map_is_named_or_read(suffix, tmp_path):
    whole = encoded(ids_map([0, 5, 13, 255]), *IMAGES[suffix])
    save(tmp_path / "train/images/a.png", picture(0))
    path = tmp_path / f"train/labels/a.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(whole)
    data = open_dataset("folder", tmp_path, "train", SIZE)
    right = data.label(0)

    @often
    @given(changes())
    def check(change):
        path.write_bytes(mangled(whole, change))
        problems = in_one_line(check_part("folder", tmp_path, "train", SIZE, 0), path)
        if not problems and suffix == "png":
            assert (data.label(0) == right).all()

    check()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def array(shape, kind="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(100)


def pickled(value):
    file = io.BytesIO()
    np.save(file, np.array([value], object), allow_pickle=True)
    return file.getvalue()


HOSTILE = {
    "a picture of 2^62 pixels.png": bomb(2**31 - 1, 2**31 - 1),
    "a picture of 10^10 pixels.png": bomb(10**5, 10**5),
    "a picture of 10^8 pixels that ends.png": bomb(10**4, 10**4),
    "no width.png": bomb(0, 5),
    "an array of 2^60 bytes.npy": array((2**30, 2**30)),
    "an array of 10^11 bytes.npy": array((10**11,)),
    "an array of many axes.npy": array((1,) * 30),
    "an array of objects.npy": pickled({"a": 1}),
    "an array of words.npy": array((5, 5), "|S4"),
    "an array of times.npy": array((2, 2), "<M8[s]"),
    "a zip.npy": b"PK\x03\x04" + bytes(100),
    "an odd header.npy": b"\x93NUMPY\x01\x00\x20\x00" + b"(" * 32,
    "a deep header.npy": b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 0x2000,
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "nothing.jpg": b"",
    "one byte.tif": b"I",
    "a page.png": b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_made_up_picture_is_named(name, tmp_path):
    path = tmp_path / "train/images" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[name])
    (problem,) = in_one_line(check_part("folder", tmp_path, "train", SIZE, 0, labelled=False), path)
    assert "must be" in problem
    path.unlink()
    if path.suffix != ".jpg":
        save(tmp_path / f"train/images/{path.stem}.png", picture(0))
        path = tmp_path / "train/labels" / name
        path.parent.mkdir()
        path.write_bytes(HOSTILE[name])
        (problem,) = in_one_line(check_part("folder", tmp_path, "train", SIZE, 0), path)
        assert "must be" in problem


LIST = b'image,label\na.png,labels/a.png\n# more\n"b c.png" labels/b.png\n'


@often
@given(changes() | st.binary(max_size=200).map(lambda content: ("insert", 0.0, content or b"x")))
def test_a_mangled_list_is_named_or_read(tmp_path_factory, change):
    path = tmp_path_factory.mktemp("lists", numbered=True) / "list.txt"
    path.write_bytes(mangled(LIST, change))
    rows, problem = attempt(read_list, path)
    if problem is None:
        assert all(isinstance(row.image, str) and ".." not in row.image.split("/") for row in rows)
    else:
        assert problem.startswith(f"{path}:")
        assert len(problem.splitlines()) == 1


LISTS = {
    "a null byte": b"a\0.png\n",
    "a long name": b"x" * 300 + b".png\n",
    "a long line": b'"' + b"x" * 200_000 + b'"\n',
    "latin-1": "straße.png".encode("latin-1"),
    "utf-16": "a.png".encode("utf-16"),
    "a picture": encoded(np.asarray(picture(0)), "PNG", {}),
    "upwards": b"../a.png\n",
    "a quotation mark": b'a.png\n"\n',
    "a path longer than any": b"a/" * 3000 + b"a.png\n",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_a_list_of_what_cannot_be_is_named(content, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    report = check_part("folder", tmp_path, "list.txt", SIZE, 0, labelled=False)
    (problem,) = report.problems
    assert problem.startswith(f"{tmp_path}/list.txt:")
    assert len(problem) < 500


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe1: road",
        b"1: road\0",
        b"",
        b"[1, 2",
        b"{" * 5000,
        b"1: road\n1: car",
        b"9" * 5000 + b": road",
        b'"%s": road' % (b"9" * 5000),
    ],
)
@pytest.mark.parametrize("read", [lambda path: read_ids(path, CITYSCAPES), lambda path: classes_of(str(path))])
def test_an_id_map_or_class_list_of_what_cannot_be_is_named(read, content, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.yaml") as caught:
        read(path)
    assert len(str(caught.value)) < 1000


YAML = b"7: road\n8: sidewalk\n'11': car\n0: 255\n"


@often
@given(changes() | st.binary(max_size=100).map(lambda content: ("insert", 0.0, content or b"x")))
def test_a_mangled_id_map_is_named_or_read(tmp_path_factory, change):
    path = tmp_path_factory.mktemp("ids", numbered=True) / "ids.yaml"
    path.write_bytes(mangled(YAML, change))
    ids, problem = attempt(read_ids, path, CITYSCAPES)
    assert str(path) in problem if problem else set(ids.values()) <= {*range(19), 255}
