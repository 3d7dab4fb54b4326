"""What the CUDA launchers ask of the runtime, and what they say when it refuses."""

import numpy as np
import pytest

INSUFFICIENT_DRIVER, NO_KERNEL_IMAGE, OTHER = 35, 209, 1


def labels(height, width):
    return np.random.default_rng(0).integers(0, 4, (1, height, width)).astype(np.uint8)


def mean_of(library, segments):
    features = np.ones((1, 8, *segments.shape[1:]), np.float32)
    return library.segment_mean(features, "float32", False, segments, segments.shape[1])


CALLS = {
    "components": lambda library, x: library.components(x, 8, 255),
    "regions": lambda library, x: library.regions(x, [0, 1], [2, 3], 2, 8),
    "segment_mean": mean_of,
}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (INSUFFICIENT_DRIVER, "needs driver 580 or newer"),
        (NO_KERNEL_IMAGE, "no machine code for this GPU.*SIMFAST_CUDA_ARCHITECTURES"),
        (OTHER, "invalid argument"),
    ],
)
@pytest.mark.parametrize("op", CALLS)
def test_a_refusal_is_said_once_and_the_next_call_is_not_blamed(library, op, error, message):
    call, x = CALLS[op], labels(5, 7)
    expected = call(library, x)
    library.fail_next(error)
    with pytest.raises(RuntimeError, match=message):
        call(library, x)
    for got, want in zip(call(library, x), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_no_launch_can_hold_is_said_without_the_ops_name(library):
    """The binding puts it before: once is enough."""
    one = np.zeros((1, 1), np.int64)
    logits = np.broadcast_to(np.float32(0), (1, 2**31 - 1))
    with pytest.raises(RuntimeError, match=r"^too many slots or classes for one launch"):
        library.select_rings(one.astype(np.int32), one[0], logits, "float32", one[0])


@pytest.mark.parametrize("op", ["regions", "segment_mean"])
def test_calls_of_any_size_ask_for_the_same_shared_memory(library, op):
    """The limit belongs to the kernel, not to a call: two host threads of different sizes would undo each other's."""
    library.shared_limits()
    for size in ((3, 4), (40, 50), (9, 100)):
        CALLS[op](library, labels(*size))
    assert len(set(library.shared_limits())) == 1
