"""connected_components' CUDA kernels on the CPU: equal to scikit-image, value for value, in any order of threads."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label as sk_label

from simfast.testing import HARD_MAPS, IGNORE, LABEL_LAYOUTS, checkerboard, comb, noise_labels, smooth_labels, spiral

# Maps about the 64 x 64 tile: its corners, its size and one more or less, several in either direction.
TILE_MAPS = {
    "spiral through tiles": spiral(130, 195),
    "comb across a seam": comb(129, 127),
    "checkerboard of one tile": checkerboard(64, 64),
    "noise, a tile less one": noise_labels(1, 63, 63, 2)[0].numpy(),
    "noise, a tile": noise_labels(1, 64, 64, 3)[0].numpy(),
    "noise, a tile and one": noise_labels(1, 65, 65, 2)[0].numpy(),
    "noise, two tiles": noise_labels(1, 128, 128, 2)[0].numpy(),
    "noise, six tiles": noise_labels(1, 129, 193, 2, 0.3)[0].numpy(),
    "one class over six tiles": np.full((129, 193), 7, np.uint8),
    "diagonals over four tiles": np.eye(128, dtype=np.uint8) + np.eye(128, dtype=np.uint8)[::-1],
    "blobs over twelve tiles": smooth_labels(1, 190, 250, 19, 24, 0.1)[0].numpy(),
}


def unit_patterns(column: int = 14) -> np.ndarray:
    """Every pattern of two classes on 2 x 5 pixels, one below the other, from `column` on: over a unit's border."""
    patterns = (np.arange(2**10)[:, None] >> np.arange(10) & 1).reshape(-1, 2, 5)
    labels = np.full((2**10, 3, column + 6), IGNORE, np.uint8)
    labels[:, :2, column : column + 5] = patterns
    return labels.reshape(-1, column + 6)


def check(host, labels: np.ndarray, connectivity: int = 8, background: int = IGNORE) -> None:
    ids, counts = host.components(labels, connectivity, background)
    for b, image in enumerate(labels):
        expected = sk_label(image.astype(np.int64), background=background, connectivity=connectivity // 4)
        np.testing.assert_array_equal(ids[b], expected)
        assert counts[b] == expected.max()


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", [*HARD_MAPS, *TILE_MAPS])
def test_equal_to_scikit_image(host, name, connectivity):
    check(host, (HARD_MAPS | TILE_MAPS)[name][None], connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("column", [0, 14, 62])
def test_every_pattern_of_two_rows(shuffled, column, connectivity):
    """At a row's start, over the border of two units and that of two tiles; some over that of two rows of tiles."""
    check(shuffled, unit_patterns(column)[None], connectivity)


@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_dtype_and_strides_are_read_in_place(shuffled, dtype, layout):
    labels = noise_labels(3, 66, 70, 3, 0.2).to(dtype)
    check(shuffled, LABEL_LAYOUTS[layout](labels).numpy())


def test_labels_are_compared_in_full(shuffled):
    """Values that agree in their low 32 bits differ; a background that the dtype cannot hold is no pixel's."""
    check(shuffled, (noise_labels(1, 20, 30, 3).to(torch.int64) * 2**32 + 5).numpy(), background=5)
    check(shuffled, noise_labels(1, 20, 30, 3).numpy(), background=256)
    check(shuffled, (noise_labels(1, 20, 30, 3).to(torch.int16) - 2).numpy(), background=-1)


@pytest.mark.parametrize("shift", [0, 1])
def test_rows_of_whole_units_are_loaded_as_such_if_they_are_aligned(shuffled, shift):
    memory = np.zeros(2 * 70 * 144 + 32, np.uint8)
    skip = -memory.ctypes.data % 16 + shift
    labels = memory[skip : skip + 2 * 70 * 144].reshape(2, 70, 144)
    labels[:] = noise_labels(2, 70, 144, 3, 0.2).numpy()
    check(shuffled, labels)
    check(shuffled, labels[:, :, :80])


def test_an_image_of_a_batch_equals_itself_alone(shuffled):
    labels = smooth_labels(3, 70, 131, scale=16, ignore=0.2).numpy()
    ids, counts = shuffled.components(labels, 8, IGNORE)
    for b in range(3):
        alone, count = shuffled.components(labels[b : b + 1], 8, IGNORE)
        np.testing.assert_array_equal(alone[0], ids[b])
        assert count[0] == counts[b]


@pytest.mark.parametrize("seed", range(1, 9))
def test_unions_that_race_for_the_same_roots(library, seed):
    """Maps whose tiles are joined from many sides at once, under ever other turns of the blocks and threads."""
    library.configure(seed=seed, resident_blocks=6)
    check(library, TILE_MAPS["one class over six tiles"][None])
    check(library, TILE_MAPS["comb across a seam"][None])
    library.configure()


def test_more_tile_rows_than_numbering_blocks(library):
    """Beyond 1,024 rows of tiles a numbering block takes several of them."""
    check(library, (np.arange(1030 * 64) // 37 % 3).astype(np.uint8).reshape(1, -1, 1), background=1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_map(library, data):
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 70)))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3), fill=st.integers(0, 3)))
    library.configure(seed=data.draw(st.integers(0, 1000)), resident_blocks=data.draw(st.integers(1, 6)))
    check(library, labels, data.draw(st.sampled_from([4, 8])), background=0)
