"""The operators as torch knows them, without the checks of simfast.ops: no size and no value leads out of memory. What
labels do that change in the middle of a call is in tests/sanitize."""

import subprocess
import sys

import pytest
import torch

from simfast import ops
from simfast.ops.nearest import nearest_l1_ragged

operators = torch.ops.simfast
HUGE = 2**60
LONG = torch.zeros(1, dtype=torch.int64)
BYTE = torch.zeros(1, 1, 1, dtype=torch.uint8)


def nearest(num, rows, width, classes=1):
    bank = torch.zeros(1, 1, 1).expand(classes, rows, width)
    return ops.nearest_l1(torch.zeros(1, 1).expand(num, width), LONG.expand(num), bank, LONG.expand(classes))


TOO_LARGE = {
    "a class's rows": (lambda: nearest(16, HUGE, 4), "got 16 times 1152921504606846976"),
    "rows of no width": (lambda: nearest(16, HUGE, 0), "got 16 times 1152921504606846976"),
    "queries times rows": (lambda: nearest(2**30, 2**30, 1), "less than 2\\^48, .* got 1073741824 times"),
    "query width": (lambda: nearest(2, 1, HUGE), "queries must have less than 2\\^48 elements"),
    "classes": (lambda: nearest(2, 0, 4, HUGE), "filled must have less than 2\\^48 elements"),
    "images of labels": (lambda: ops.find_regions(BYTE.expand(HUGE, 1, 1), [0], [1]), "labels must have less than"),
    "images of components": (lambda: ops.connected_components(BYTE.expand(HUGE, 1, 1)), "labels must have less than"),
    # 12 bytes of workspace for each of so many pixels are 2^32 modulo 2^64.
    "runs of segments": (
        lambda: ops.segment_mean(
            torch.zeros(1, 1, 1, 1).expand(2**30, 1, 1, 1431655765), BYTE.expand(2**30, 1, 1431655765), 1
        ),
        "segments must have less than 2\\^48 elements, got \\[1073741824, 1, 1431655765\\]",
    ),
    "channels": (
        lambda: ops.segment_mean(torch.zeros(1, 1, 1, 1).expand(1, HUGE, 1, 1), BYTE, 1),
        "features must have less than 2\\^48 elements",
    ),
    "channels of a gradient": (
        lambda: operators.segment_mean_backward(
            torch.zeros(1, 1, 1).expand(1, 1, HUGE), LONG.int()[None], BYTE, torch.float32, True
        ),
        "grad must have less than 2\\^48 elements",
    ),
    "areas": (lambda: ops.select_rings(LONG.int()[None].expand(HUGE, 1), LONG), "areas must have less than 2\\^48"),
    "regions": (
        lambda: ops.matching_losses(*(x.expand(HUGE, 1) for x in (torch.zeros(1, 1), LONG[None], LONG[None])), 1, 1, 1),
        "rows must have less than 2\\^48",
    ),
    "vectors": (
        lambda: operators.ring_write(
            torch.zeros(4, 2), LONG.clone(), torch.zeros(1, 2).expand(HUGE, 2), LONG, LONG, LONG + 1
        ),
        "vectors must have less than 2\\^48",
    ),
}
BAD = {
    "a class twice": (lambda: operators.find_regions(BYTE, [0, 0], [0], 3, 8), "distinct classes, got 0 twice"),
    "no instances": (lambda: operators.find_regions(BYTE, [0], [1], 0, 8), "max_instances must be in .*, got 0"),
    "connectivity": (lambda: operators.find_regions(BYTE, [0], [1], 3, 6), "connectivity must be 4 or 8, got 6"),
    "a scalar": (lambda: operators.find_regions(BYTE[0, 0, 0], [0], [1], 3, 8), "labels must be .*, got uint8 \\[\\]"),
    "num_segments": (lambda: operators.segment_mean(torch.zeros(1, 1, 1, 1), BYTE, -1), "num_segments must be .* -1"),
    "filled": (
        lambda: operators.nearest_l1(torch.zeros(1, 2), LONG, torch.zeros(1, 2), None, LONG[0], 1),
        "filled must be int64 with one dimension, got int64 \\[\\]",
    ),
    "classes": (
        lambda: operators.nearest_l1(torch.zeros(2, 2), LONG, torch.zeros(1, 2), None, LONG, 1),
        "classes must be int64 \\[2\\], got int64 \\[1\\]",
    ),
    "a bank of fewer rows": (
        lambda: operators.nearest_l1(torch.zeros(1, 2), LONG, torch.zeros(1, 2), None, LONG, 2),
        "bank must hold 2 rows for each of 1 classes, got float32 \\[1, 2\\]",
    ),
    "sizes": (
        lambda: operators.ring_write(torch.zeros(4, 2), LONG[0], torch.zeros(1, 2), LONG, LONG[0], LONG[0]),
        "sizes must be int64 with one dimension",
    ),
    "slot classes": (
        lambda: operators.select_rings(torch.zeros(1, 2).int(), torch.zeros(2).long(), torch.zeros(2, 3), LONG),
        "slot_classes must be int64 \\[2\\], got int64 \\[1\\]",
    ),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_size_that_no_memory_holds_is_named(case):
    call, message = TOO_LARGE[case]
    with pytest.raises(RuntimeError, match=message):
        call()


@pytest.mark.parametrize("case", BAD)
def test_the_operator_itself_checks_what_its_kernels_rely_on(case):
    call, message = BAD[case]
    with pytest.raises(RuntimeError, match=message):
        call()


def test_where_there_is_no_memory_the_output_is_named():
    features = torch.zeros(1, 1, 1, 1).expand(1, 2**23, 1, 1)
    with pytest.raises(MemoryError, match=r"^segment_mean: means: no memory for float32 \[1, 16777216, 8388608\]"):
        ops.segment_mean(features, BYTE, 2**24)


def test_sizes_that_mean_nothing_are_no_reason_to_refuse():
    flat = torch.tensor([[1.0], [4.0]]).expand(2, 3)
    bank = torch.zeros(1, 3).expand(HUGE, 3)
    starts, filled = torch.tensor([0, HUGE - 1]), torch.tensor([3, HUGE])
    distances, rows = nearest_l1_ragged(flat, torch.tensor([0, 1]), bank, starts, filled, 3)
    assert distances.tolist() == [3, 12]
    assert rows.tolist() == [0, 0]
    assert ops.select_rings(torch.zeros(2**50, 0).int(), LONG[:0]).shape == (2**50, 0)
    empty = torch.zeros(2**40, 0)
    assert [x.item() for x in ops.matching_losses(empty, empty.long(), empty.long(), 0, 1, 1)] == [0, 0]


@pytest.mark.parametrize("written", [2**63 - 1, 2**63 - 3, -5])
def test_a_ring_that_cannot_count_on_is_left_alone(written):
    # Of its own process: rows before the storage would be written.
    code = f"""
import torch
from simfast import ops
storage, written = torch.zeros(4, 2), torch.tensor([{written}])
three = torch.tensor([3])
ops.ring_write(storage, written, torch.ones(3, 2), torch.zeros(3).long(), torch.zeros(1).long(), three)
assert not storage.any() and written.item() == {written}, (storage, written)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
