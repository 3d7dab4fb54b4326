"""Label files in every form that people save them: what was written is what is read, or an error says what mends it."""

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from PIL import Image
from pngs import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, write_png

from simfast.config.classes import CITYSCAPES, IGNORE, classes_of
from simfast.data.classes import coding_of

COLOURS = [[70, 70, 70], [0, 0, 142], [107, 142, 35], [220, 20, 60]]
VOID = [10, 0, 0]
NAMES = ("house", "car", "tree", "person")


def coding(ids=None, colours=None, ignore=None, other="error", data_set="folder"):
    """Of four classes; ids and colours are those of label files, by class."""
    classes = [{"name": name, "colour": shown, "kind": "stuff"} for name, shown in zip(NAMES, COLOURS, strict=True)]
    for i, one in enumerate(classes):
        one |= ({"ids": [ids[i]]} if ids else {}) | ({"colours": [colours[i]]} if colours else {})
    return coding_of(data_set, classes_of({"classes": classes, "ignore": ignore or {}, "other": other}))


BY_IDS = coding([0, 1, 2, 3])
BY_COLOURS = coding(colours=COLOURS, ignore={"colours": [VOID]})
TRAIN_IDS = np.array([[0, 1, 2, 3, 3], [3, 3, 0, 0, 1], [2, 2, 2, 2, 2]])
PAINTED = np.array(COLOURS)[TRAIN_IDS]


def stacked(*channels):
    return np.stack(np.broadcast_arrays(*channels), -1)


# --- every form reads back -------------------------------------------------------------------------------------------

# Name of the form, with the suffix: (writes a map of ids 0 to the given number to a path, that number)
HIGHEST = {1: 1, 2: 3, 4: 15, 8: 255, 16: 65535}
ID_FORMS = {
    **{
        f"{bits}-bit grey.png": (lambda path, ids, bits=bits: write_png(path, ids, bits, GREY), HIGHEST[bits])
        for bits in (1, 2, 4, 8, 16)
    },
    **{
        f"{bits}-bit palette.png": (
            lambda path, ids, bits=bits: write_png(path, ids, bits, PALETTE, [[i, 9, 200] for i in range(2**bits)]),
            HIGHEST[bits],
        )
        for bits in (1, 2, 4, 8)
    },
    "ramp palette.png": (lambda path, ids: write_png(path, ids, 8, PALETTE, [[i] * 3 for i in range(256)]), 255),
    "grey, opaque.png": (lambda path, ids: write_png(path, stacked(ids, 255), 8, GREY_ALPHA), 255),
    "grey, half there.png": (lambda path, ids: write_png(path, stacked(ids, 128), 8, GREY_ALPHA), 255),
    "16-bit grey, opaque.png": (lambda path, ids: write_png(path, stacked(ids, 65535), 16, GREY_ALPHA), 65535),
    "R=G=B.png": (lambda path, ids: write_png(path, stacked(ids, ids, ids), 8, RGB), 255),
    "red.png": (lambda path, ids: write_png(path, stacked(ids, 0, 0), 8, RGB), 255),
    "red, opaque.png": (lambda path, ids: write_png(path, stacked(ids, 0, 0, 255), 8, RGBA), 255),
    "16-bit R=G=B.png": (lambda path, ids: write_png(path, stacked(ids, ids, ids), 16, RGB), 65535),
    "16-bit red.png": (lambda path, ids: write_png(path, stacked(ids, 0, 0), 16, RGB), 65535),
    "16-bit red, opaque.png": (lambda path, ids: write_png(path, stacked(ids, 0, 0, 65535), 16, RGBA), 65535),
    "16-bit red.tif": (
        lambda path, ids: tifffile.imwrite(path, stacked(ids, 0, 0).astype(np.uint16), photometric="rgb"),
        65535,
    ),
    "black and white.bmp": (lambda path, ids: Image.fromarray(ids == 1).save(path), 1),
    "grey.bmp": (lambda path, ids: Image.fromarray(ids.astype(np.uint8)).save(path), 255),
    **{
        f"{dtype}.tif": (lambda path, ids, dtype=dtype: tifffile.imwrite(path, ids.astype(dtype)), highest)
        for dtype, highest in (("uint8", 255), ("int8", 127), (">u2", 65535), ("int16", 32767), ("int32", 65535))
    },
    "uint32, packed.tif": (
        lambda path, ids: tifffile.imwrite(path, ids.astype(np.uint32), compression="zlib"),
        65535,
    ),
    **{
        f"{dtype}.npy": (lambda path, ids, dtype=dtype: np.save(path, ids.astype(dtype)), highest)
        for dtype, highest in (("bool", 1), ("uint8", 255), ("int8", 127), (">u2", 65535), ("int64", 65535))
    },
    "[1, H, W].npy": (lambda path, ids: np.save(path, ids[None]), 65535),
    "[H, W, 1].npy": (lambda path, ids: np.save(path, ids[..., None]), 65535),
}
# Name of the form, with the suffix: writes a map of colours [H, W, 3] to a path
COLOUR_FORMS = {
    "RGB.png": lambda path, colours: write_png(path, colours, 8, RGB),
    "RGBA.png": lambda path, colours: write_png(path, np.dstack([colours, colours[..., :1] * 0 + 255]), 8, RGBA),
    "16-bit RGB.png": lambda path, colours: write_png(path, colours * 257, 16, RGB),
    "16-bit RGB.tif": lambda path, colours: tifffile.imwrite(path, (colours * 257).astype("u2"), photometric="rgb"),
    "RGB.bmp": lambda path, colours: Image.fromarray(colours.astype(np.uint8)).save(path),
    "RGB.tiff": lambda path, colours: tifffile.imwrite(
        path, colours.astype("u1"), photometric="rgb", compression="zlib"
    ),
    "RGB.npy": lambda path, colours: np.save(path, colours.astype(np.uint8)),
    "palette.png": lambda path, colours: write_indexed(path, colours, 8),
    "4-bit palette.png": lambda path, colours: write_indexed(path, colours, 4),
    "palette.bmp": lambda path, colours: (
        Image.fromarray(colours.astype(np.uint8)).quantize(8, dither=Image.Dither.NONE).save(path)
    ),
    "palette.tif": lambda path, colours: (
        Image.fromarray(colours.astype(np.uint8)).quantize(8, dither=Image.Dither.NONE).save(path)
    ),
}


def write_indexed(path, colours, bits):
    """Indices in the order of a sorted palette, as a program that packs pictures has it; they mean nothing."""
    palette, indices = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
    write_png(path, indices.reshape(colours.shape[:2]), bits, PALETTE, palette)


@st.composite
def id_tables(draw):
    """A form, its ids, and a map of classes and of what is don't care."""
    form = draw(st.sampled_from(sorted(ID_FORMS)))
    highest = ID_FORMS[form][1]
    ids = draw(st.lists(st.integers(0, highest), min_size=min(5, highest + 1), max_size=5, unique=True))
    shape = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    places = draw(st.lists(st.integers(0, len(ids) - 1), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return form, ids, np.array(places).reshape(shape)


@given(id_tables())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_written_in_any_form_read_back(tmp_path, drawn):
    form, ids, places = drawn
    table = dict(zip(ids, (0, 1, 2, 3, IGNORE), strict=False))
    path = tmp_path / form
    ID_FORMS[form][0](path, np.array(ids)[places])
    read = coding_of("folder", BY_IDS.classes, table).read(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, np.array([0, 1, 2, 3, IGNORE])[places])


@given(
    st.sampled_from(sorted(COLOUR_FORMS)),
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=5, max_size=5, unique=True),
    st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_colours_written_in_any_form_read_back(tmp_path, form, colours, places):
    places = np.array(places)
    by_colours = coding(colours=[list(colour) for colour in colours[:4]], ignore={"colours": [list(colours[4])]})
    COLOUR_FORMS[form](tmp_path / form, np.array(colours)[places])
    assert np.array_equal(by_colours.read(tmp_path / form), np.array([0, 1, 2, 3, IGNORE])[places])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_signed_minus_one_is_dont_care(dtype, suffix, tmp_path):
    label = np.array([[0, -1], [3, -1]], dtype)
    path = tmp_path / f"a{suffix}"
    np.save(path, label) if suffix == ".npy" else tifffile.imwrite(path, label)
    assert BY_IDS.read(path).tolist() == [[0, IGNORE], [3, IGNORE]]
    np.save(path, -label) if suffix == ".npy" else tifffile.imwrite(path, label - 1)
    with pytest.raises(ValueError, match=r"label ids must be among 0-3, got -\d at \(x, y\) = "):
        BY_IDS.read(path)


def test_the_greatest_unsigned_id_is_not_minus_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((2, 2), 2**32 - 1, np.uint32))
    with pytest.raises(ValueError, match="got 4294967295 at"):
        BY_IDS.read(tmp_path / "a.tif")


def test_masks_in_black_and_white_are_read_by_colours(tmp_path):
    masks = coding(colours=[[0, 0, 0], [255, 255, 255], [1, 2, 3], [4, 5, 6]])
    for name, white, bits in (("1.png", 1, 1), ("4.png", 15, 4), ("8.png", 255, 8), ("16.png", 65535, 16)):
        write_png(tmp_path / name, np.array([[0, white]]), bits, GREY)
        assert masks.read(tmp_path / name).tolist() == [[0, 1]], name


# --- what is not listed ----------------------------------------------------------------------------------------------

WRONG_IDS = np.array([[0, 1, 2], [1, 9, 7]])
WRONG_COLOURS = np.array([[COLOURS[0], COLOURS[1], [9, 8, 7]]])


def test_an_id_that_is_not_listed_is_named_with_its_pixel_and_the_remedy(tmp_path):
    write_png(tmp_path / "a.png", WRONG_IDS, 16, GREY)
    message = (
        r"a\.png: label ids must be among 0-3, got 9 at \(x, y\) = \(1, 1\), 7 at \(x, y\) = \(2, 1\); list them in a "
        r"class file \(--classes FILE\), or map them with --source-ids or --target-ids FILE; or say `other: ignore`"
    )
    with pytest.raises(ValueError, match=message):
        BY_IDS.read(tmp_path / "a.png")
    ignoring = coding([0, 1, 2, 3], other="ignore")
    assert ignoring.read(tmp_path / "a.png").tolist() == [[0, 1, 2], [1, IGNORE, IGNORE]]


@pytest.mark.parametrize("form", COLOUR_FORMS)
def test_a_colour_that_is_not_listed_is_named_with_its_pixel_and_the_remedy(form, tmp_path):
    path = tmp_path / form
    COLOUR_FORMS[form](path, WRONG_COLOURS)
    message = (
        r": label colours must be among the 5 .*, got \(9, 8, 7\) at \(x, y\) = \(2, 0\); .*--classes.*other: ignore"
    )
    with pytest.raises(ValueError, match=message):
        BY_COLOURS.read(path)
    assert coding(colours=COLOURS, other="ignore").read(path).tolist() == [[0, 1, IGNORE]]


def test_what_is_no_colour_of_8_bits_is_not_listed(tmp_path):
    listed = coding(colours=[[1, 2, 3], *COLOURS[1:]])
    write_png(tmp_path / "a.png", np.array([[[1, 2, 3], [300, 2, 3]]]), 16, RGB)
    with pytest.raises(
        ValueError, match=r"got \(1, 2, 3\) in 16 bits at \(x, y\) = \(0, 0\), \(300, 2, 3\) in 16 bits at"
    ):
        listed.read(tmp_path / "a.png")


def test_an_index_beyond_the_palette_is_not_listed(tmp_path):
    write_png(tmp_path / "a.png", np.array([[0, 9]]), 8, PALETTE, COLOURS)
    with pytest.raises(ValueError, match=r"got no colour at \(x, y\) = \(1, 0\)"):
        BY_COLOURS.read(tmp_path / "a.png")


def test_many_that_are_not_listed_are_counted(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"got \(\d+, \d+, \d+\) at .* and 4\d\d\d more; ") as error:
        BY_COLOURS.read(tmp_path / "a.png")
    assert len(str(error.value)) < 600


def test_colours_need_a_list_with_colours_even_where_others_are_ignored(tmp_path):
    write_png(tmp_path / "a.png", PAINTED, 8, RGB)
    for other in ("error", "ignore"):
        with pytest.raises(ValueError, match=r"a\.png: a label map must hold ids .*, got the colour .*--classes FILE"):
            coding([0, 1, 2, 3], other=other).read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.png", lambda path: write_png(path, stacked(WRONG_IDS, WRONG_IDS), 8, GREY_ALPHA), "got 0 to 9; paint what"),
        ("a.png", lambda path: write_png(path, stacked(0, 0, 0, WRONG_IDS), 8, RGBA), "transparency must be the same"),
        ("a.png", lambda path: write_png(path, stacked(0, 0, 0, WRONG_IDS), 16, RGBA), "transparency must be the same"),
        ("a.npy", lambda path: np.save(path, TRAIN_IDS / 2), r"integer or boolean \[H, W\], .*, got float64 \[3, 5\]"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 4, 4), int)), r"\[H, W\], .*, got int64 \[2, 4, 4\]"),
        ("a.tif", lambda path: tifffile.imwrite(path, np.ones((4, 4), np.float32)), "of whole numbers, got mode F"),
        ("a.png", lambda path: Image.new("L", (8, 8)).save(path, "JPEG"), "that loses nothing, got JPEG"),
        (
            "a.tif",
            lambda path: Image.new("L", (8, 8)).save(path, compression="jpeg"),
            "that loses nothing, got TIFF jpeg",
        ),
        (
            "a.tif",
            lambda path: tifffile.imwrite(path, np.zeros((4, 4), np.uint8), photometric="miniswhite"),
            "a TIFF whose black is zero",
        ),
    ],
)
def test_what_is_no_label_map_is_named(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"a\.\w+: a label map.*{message}"):
        BY_IDS.read(tmp_path / name)


# --- ids or colours --------------------------------------------------------------------------------------------------


def test_two_readings_that_differ_are_an_error_and_two_that_agree_are_none(tmp_path):
    both = coding([0, 1, 2, 3], [[9, 9, 9], [0, 0, 0], [2, 2, 2], [255, 0, 0]])
    write_png(tmp_path / "a.png", stacked(*[np.zeros((3, 4))] * 3), 8, RGB)
    message = (
        r"a\.png: a label map must be of ids or of colours, and this one could be either: \(0, 0, 0\) at \(x, y\) = "
        r"\(0, 0\) is 'car' as a colour and 'house' as the id 0; give --classes FILE with ids alone"
    )
    with pytest.raises(ValueError, match=message):
        both.read(tmp_path / "a.png")
    write_png(tmp_path / "b.png", stacked(*[np.full((3, 4), 2)] * 3), 8, RGB)
    assert both.read(tmp_path / "b.png").tolist() == [[2] * 4] * 3


def test_one_value_that_is_no_colour_makes_ids_of_all_and_one_that_is_no_id_colours(tmp_path):
    both = coding([0, 1, 2, 3], [[9, 9, 9], [0, 0, 0], [2, 2, 2], [255, 0, 0]])
    write_png(tmp_path / "ids.png", stacked(*[np.array([[0, 1]])] * 3), 8, RGB)
    write_png(tmp_path / "colours.png", stacked(*[np.array([[0, 9]])] * 3), 8, RGB)
    assert both.read(tmp_path / "ids.png").tolist() == [[0, 1]]
    assert both.read(tmp_path / "colours.png").tolist() == [[1, 0]]


def test_where_others_are_ignored_two_half_readings_are_an_error_too(tmp_path):
    both = coding([0, 1, 2, 3], [[9, 9, 9], [70, 70, 70], [0, 0, 2], [255, 0, 0]], other="ignore")
    write_png(tmp_path / "a.png", stacked(*[np.array([[0, 70, 5]])] * 3), 8, RGB)
    with pytest.raises(ValueError, match=r"\(0, 0, 0\) .* is not listed as a colour and 'house' as the id 0"):
        both.read(tmp_path / "a.png")
    write_png(tmp_path / "a.png", stacked(*[np.array([[70, 5]])] * 3), 8, RGB)
    assert both.read(tmp_path / "a.png").tolist() == [[1, IGNORE]]


# --- palettes --------------------------------------------------------------------------------------------------------

SHUFFLED = [COLOURS[i] for i in (2, 0, 3, 1)]  # index 0 is painted as a tree


def palette_file(path, palette, indices=TRAIN_IDS):
    write_png(path, indices, 8, PALETTE, palette)
    return path


def test_arbitrary_indices_are_read_through_the_palette_of_a_list_with_colours(tmp_path):
    path = palette_file(tmp_path / "a.png", SHUFFLED)
    expected = np.array([2, 0, 3, 1])[TRAIN_IDS]
    for own in (BY_COLOURS, coding([0, 1, 2, 3], COLOURS)):
        assert np.array_equal(own.read(path), expected)


def test_without_label_colours_a_palette_that_contradicts_its_indices_is_an_error(tmp_path):
    path = palette_file(tmp_path / "a.png", SHUFFLED)
    message = (
        r"a\.png: its palette contradicts its indices: index 0 at \(x, y\) = \(0, 0\) is painted \(107, 142, 35\) as "
        r"'tree', and as an id it is 'house'; if the colours are right, give --classes FILE whose classes have colours"
    )
    with pytest.raises(ValueError, match=message):
        BY_IDS.read(path)
    shown = [list(CITYSCAPES.entries[i].colour) for i in (10, 0, 13, 2)]
    with pytest.raises(ValueError, match=r"is painted \(70, 130, 180\) as 'sky', and as an id it is 'road'"):
        coding_of("folder", CITYSCAPES).read(palette_file(tmp_path / "b.png", shown))


def test_a_palette_that_says_the_same_or_nothing_leaves_ids(tmp_path):
    for palette in (COLOURS, [[1, 2, 3 + i] for i in range(4)], [COLOURS[0], [5, 5, 5], [0, 0, 0], COLOURS[3]]):
        assert np.array_equal(BY_IDS.read(palette_file(tmp_path / "a.png", palette)), TRAIN_IDS), palette
        both = coding([0, 1, 2, 3], COLOURS)
        assert np.array_equal(both.read(palette_file(tmp_path / "a.png", palette)), TRAIN_IDS), palette


def test_the_palette_of_a_published_set_is_decoration(tmp_path):
    path = palette_file(tmp_path / "a.png", [COLOURS[1]] * 20, np.full((3, 4), 11))
    assert coding_of("gta5", CITYSCAPES).read(path).tolist() == [[2] * 4] * 3


def test_a_black_palette_entry_of_what_is_ignored_contradicts_nothing(tmp_path):
    black_is_a_class = [{"name": "ground", "colour": [0, 0, 0], "kind": "stuff", "ids": [1]}]
    black_is_a_class += [{"name": "thing", "colour": [255, 255, 255], "kind": "thing", "ids": [2]}]
    classes = classes_of({"classes": black_is_a_class, "ignore": {"ids": [0]}})
    path = palette_file(tmp_path / "a.png", [[0, 0, 0], [0, 0, 0], [255, 255, 255]], np.array([[0, 1, 2]]))
    assert coding_of("folder", classes).read(path).tolist() == [[IGNORE, 0, 1]]


def test_half_a_palette_counts_where_others_are_ignored_and_is_an_error_where_not(tmp_path):
    path = palette_file(tmp_path / "a.png", [*SHUFFLED[:3], [9, 9, 9]])
    expected = np.array([2, 0, 3, IGNORE])[TRAIN_IDS]
    assert np.array_equal(coding(colours=COLOURS, other="ignore").read(path), expected)
    assert np.array_equal(coding([0, 1, 2, 3], COLOURS, other="ignore").read(path), expected)
    with pytest.raises(ValueError, match=r"label colours must be among .*, got \(9, 9, 9\) at \(x, y\) = \(3, 0\)"):
        coding(colours=COLOURS).read(path)
    with pytest.raises(ValueError, match="its palette contradicts its indices: index 0"):
        coding([0, 1, 2, 3], COLOURS).read(path)


# --- the built-in list -----------------------------------------------------------------------------------------------


def test_pictures_in_cityscapes_colours_are_read_by_default(tmp_path):
    train_ids = np.array([[0, 13, 255, 18]])
    painted = np.array([[CITYSCAPES.entries[i].colour if i < 19 else (0, 0, 0) for i in row] for row in train_ids])
    write_png(tmp_path / "a.png", painted, 8, RGB)
    assert np.array_equal(coding_of("folder", CITYSCAPES).read(tmp_path / "a.png"), train_ids)


@pytest.mark.parametrize("name", [name for name in ID_FORMS if ID_FORMS[name][1] >= 255])
def test_train_ids_are_read_in_every_form_by_default(name, tmp_path):
    train_ids = np.array([[0, 1, 18, 255], [9, 9, 2, 0]])
    ID_FORMS[name][0](tmp_path / name, train_ids)
    assert np.array_equal(coding_of("folder", CITYSCAPES).read(tmp_path / name), train_ids)


def test_opencv_writes_what_is_read(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), TRAIN_IDS.astype(np.uint16))
    assert cv2.imwrite(str(tmp_path / "a.tif"), PAINTED[..., ::-1].astype(np.uint8))
    assert np.array_equal(BY_IDS.read(tmp_path / "a.png"), TRAIN_IDS)
    assert np.array_equal(BY_COLOURS.read(tmp_path / "a.tif"), TRAIN_IDS)
