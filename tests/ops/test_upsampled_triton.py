"""The Triton kernels of upsampled_cross_entropy and upsampled_softmax without a GPU: run by Triton's interpreter, and
compiled to machine code.

The same kernels on a GPU: test_upsampled_ops.py.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from simfast import reference
from simfast.testing import assert_same, assert_within_budget

# ----------------------------------------------------------------------------------------------------------------------
# Interpreted. Triton decides on import whether to interpret, so that this takes a process of its own: this very file.
# ----------------------------------------------------------------------------------------------------------------------


def test_interpreted_kernels_equal_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [case.__name__ for case in INTERPRETED]


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
NAN = torch.nan


def make(small, large, num_classes=5, images=1, dtype=F32, label_dtype=torch.uint8, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(images, num_classes, *small, generator=g)).to(dtype)
    labels = torch.randint(0, num_classes, (images, *large), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return logits, labels.to(label_dtype)


def poisoned(shape, dtype=F32):
    return torch.full(shape, NAN, dtype=dtype)


def maps_of(logits, size, dtype):
    from simfast.ops.upsampled import padded

    shape = (len(logits), padded(logits.shape[1]), *size)
    return poisoned(shape, dtype).contiguous(memory_format=torch.channels_last)


def shares_of(logits):
    from simfast.ops.upsampled import padded

    images, num_classes, h, w = logits.shape
    return poisoned((images * max(h - 1, 1) * max(w - 1, 1), 4, padded(num_classes)))


def cross_entropy(logits, labels, weights=None, ignore=255, map_dtype=F32, scale=1.0):
    """loss, gradient, maps."""
    from simfast.ops import upsampled_triton

    maps = None if map_dtype is None else maps_of(logits, labels.shape[1:], map_dtype)
    shares = shares_of(logits)
    loss, count = upsampled_triton.cross_entropy(logits, labels, weights, ignore, maps, shares)
    return loss, upsampled_triton.gather(shares, torch.tensor(scale), count, logits), maps


def expected(logits, labels, weights, ignore, map_dtype, scale, dtype):
    logits = logits.to(dtype).requires_grad_()
    weights = None if weights is None else weights.to(dtype)
    loss, maps = reference.upsampled_cross_entropy(logits, labels, ignore, map_dtype and dtype, weights)
    return loss.detach(), torch.autograd.grad(scale * loss, logits)[0], maps


def check(logits, labels, weights=None, ignore=255, map_dtype=F32, scale=1.0):
    found = cross_entropy(logits, labels, weights, ignore, map_dtype, scale)
    exact = expected(logits, labels, weights, ignore, map_dtype, scale, torch.float64)
    honest = expected(logits, labels, weights, ignore, map_dtype, scale, F32)
    for name, ours, true, plain in zip(("loss", "gradient", "maps"), found, exact, honest, strict=True):
        if ours is not None:
            within(name, ours, true, plain)
    assert found[1].dtype == logits.dtype
    assert found[1].stride() == torch.empty_like(logits).stride()
    return found


def within(name, ours, true, plain):
    """Within the budget of the others', or of four roundings of a value between 0 and 1 where theirs are exact."""
    assert not ours.isnan().any(), name
    true = true.double()
    honest = true + (plain.double() - true).abs().max().clamp(min=2**-23)
    assert_within_budget(ours, true, honest)


def check_softmax(logits, size, dtype=F32):
    from simfast.ops import upsampled_triton

    maps = maps_of(logits, size, dtype)
    upsampled_triton.softmax(logits, maps)
    g = torch.Generator().manual_seed(1)
    grad = torch.randn(maps.shape, generator=g).to(dtype)
    gradient = upsampled_triton.softmax_backward(grad, logits, shares_of(logits))
    results = []
    for wide in (torch.float64, F32):
        x = logits.to(wide).requires_grad_()
        p = reference.upsampled_softmax(x, size, wide)
        results.append((p.detach(), torch.autograd.grad(p, x, grad.to(wide))[0]))
    within("maps", maps, *(result[0] for result in results))
    within("gradient", gradient, *(result[1] for result in results))
    assert not maps[:, logits.shape[1] :].any()
    return maps, gradient


# Feature size, label size: whole numbers of pixels between samples or not, one sample, one pixel, fewer pixels than
# samples, more pixels than a tile.
SIZES = [
    *(((2, 3), (9, 17)), ((3, 3), (7, 12)), ((2, 2), (3, 40)), ((1, 1), (1, 1)), ((1, 1), (2, 35))),
    *(((1, 3), (2, 9)), ((3, 1), (9, 1)), ((3, 3), (3, 3)), ((3, 4), (2, 1)), ((4, 4), (3, 2)), ((2, 2), (1, 1))),
]


def loss_gradient_and_maps_of_every_size():
    for small, large in SIZES:
        check(*make(small, large))


def softmax_and_gradient_of_every_size():
    for small, large in SIZES[:6]:
        check_softmax(make(small, large)[0], large)


def any_number_of_classes():
    for num_classes, dtype in ((1, BF16), (2, F32), (8, F16), (19, BF16), (40, F32), (65, F16)):
        logits, labels = make((2, 2), (4, 11), num_classes)
        check(logits, labels, map_dtype=dtype)
        check(logits, labels, map_dtype=None)
        check_softmax(logits, (4, 11), dtype)


def any_dtype_and_layout():
    for dtype in (F32, F16, BF16):
        logits, labels = make((2, 3), (4, 7), 19, 2, dtype)
        check(logits, labels, map_dtype=dtype)
        check(logits.contiguous(memory_format=torch.channels_last), labels)
        check_softmax(logits.contiguous(memory_format=torch.channels_last), (4, 7), dtype)
        wide = torch.full((2, 22, 4, 7), NAN, dtype=dtype)
        wide[:, 2:21, ::2, 1::2] = logits
        check(wide[:, 2:21, ::2, 1::2], labels)
        check_softmax(wide[:, 2:21, ::2, 1::2], (4, 7))
    logits, labels = make((2, 3), (4, 7))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        check(logits, labels.to(dtype))
    check(logits, labels.mT.contiguous().mT)


def weights_and_ignored_pixels():
    logits, labels = make((2, 3), (4, 7), images=2)
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    check(logits, labels, weights)
    check(logits, labels, weights.to(BF16), scale=3.0)
    check(logits, labels, weights.mT.contiguous().mT)
    check(logits, labels.where(labels != 1, 0).where(labels != 255, 4), ignore=0)
    check(logits, labels.long().where(labels != 255, -100), ignore=-100)
    loss, gradient, maps = cross_entropy(logits, torch.full_like(labels, 255), weights)
    assert_same(loss, torch.tensor(0.0))
    assert_same(gradient, torch.zeros_like(logits))
    within("maps", maps, *(reference.upsampled_softmax(logits.to(x), (4, 7), x) for x in (torch.float64, F32)))


def each_pixel_is_one_cells():
    """At every size: a pixel taken twice, or by none, changes the count."""
    from simfast.ops import upsampled_triton

    for few, many in ((2, 7), (4, 4), (5, 9), (8, 3), (3, 20), (1, 6), (11, 1)):
        for h, w, size in ((few, 1, (many, 2)), (1, few, (2, many))):
            labels = torch.zeros(1, *size, dtype=torch.uint8)
            _, count = upsampled_triton.cross_entropy(torch.zeros(1, 2, h, w), labels, None, 255, None, None)
            assert int(count) == 2 * many


def large_logits_and_a_wrong_label():
    logits, labels = make((2, 3), (4, 7))
    check(100 * logits, labels)
    for wrong in (5, 7, 8, 200):
        labels[0, 3, 4] = wrong
        loss, gradient, maps = cross_entropy(logits, labels)
        assert loss.isnan()
        assert gradient.isnan().any()
        assert not maps.isnan().any()
    for wrong in (-1, 2**32, -(2**63)):
        assert cross_entropy(logits, labels.long().where(labels != 200, wrong))[0].isnan()


def a_gradient_of_what_pads_is_not_looked_at():
    from simfast.ops import upsampled_triton

    logits, _ = make((2, 3), (4, 7))
    grad = torch.randn(1, 8, 4, 7, generator=torch.Generator().manual_seed(3))
    poison = grad.clone()
    poison[:, 5:] = NAN
    found = [upsampled_triton.softmax_backward(x, logits, shares_of(logits)) for x in (grad, poison)]
    assert_same(*found)
    assert found[0].any()


INTERPRETED = [
    loss_gradient_and_maps_of_every_size,
    softmax_and_gradient_of_every_size,
    any_number_of_classes,
    any_dtype_and_layout,
    weights_and_ignored_pixels,
    each_pixel_is_one_cells,
    large_logits_and_a_wrong_label,
    a_gradient_of_what_pads_is_not_looked_at,
]


# ----------------------------------------------------------------------------------------------------------------------
# Compiled: what the JIT makes of a call's very arguments
# ----------------------------------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled"
)


def launches(capability, logits, size, map_dtype=BF16, label_dtype=torch.uint8, weights=None):
    """Of a cross entropy with a map, its gradient, one without, a softmax, and its gradient."""
    from triton_launches import compiled_launches

    from simfast.ops import upsampled_triton

    labels = torch.zeros(len(logits), *size, dtype=label_dtype)
    maps, shares = maps_of(logits, size, map_dtype), shares_of(logits)
    with compiled_launches(capability) as noted:
        loss, count = upsampled_triton.cross_entropy(logits, labels, weights, 255, maps, shares)
        upsampled_triton.gather(shares, loss, count, logits)
        upsampled_triton.cross_entropy(logits, labels, weights, 255, None, shares)
        upsampled_triton.softmax(logits, maps)
        upsampled_triton.softmax_backward(maps, logits, shares)
    return noted


# At the ratio of the paper's sizes, fewer of them. The most instructions of a row of eight pixels: of the cross entropy
# with and without a map, of the softmax and of its gradient. 233, 223, 127 and 201 came out for bfloat16.
PAPER = (12, 21), (90, 160)
MOST = {"bfloat16": (BF16, (260, 250, 145, 225)), "float32": (F32, (350, 250, 180, 250))}


@compiled
@pytest.mark.parametrize(
    ("case", "capability"), [*(("bfloat16", capability) for capability in (80, 90, 100, 120)), ("float32", 90)]
)
def test_a_row_of_pixels_costs_no_barrier_and_its_map_is_written_16_bytes_a_thread(case, capability, tmp_path):
    dtype, most = MOST[case]
    small, large = PAPER
    logits = torch.zeros(1, 19, *small, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with_map, loss, gather, without, _, softmax, backward, again = launches(capability, logits, large, dtype)
    assert [x.grid[0] for x in (with_map, without, softmax, backward)] == [11 * 20] * 4
    assert loss.grid[0] == 1
    for launch, most_instructions in zip((with_map, without, softmax, backward), most, strict=True):
        code = launch.machine_code(tmp_path)
        assert code.registers <= 96  # twenty programs of a warp on a multiprocessor
        assert code.stack == 0
        row = next(loop for loop in code.loops() if code.count("MUFU.EX2", *loop))  # the innermost with a softmax
        assert code.count("BAR|LDS|STS|LDL|STL", *row) == 0
        assert code.count("", *row) <= most_instructions
        wide = code.count(r"STG\.E(\.EF)?\.128", *row)
        assert wide == code.count("STG", *row) == (launch in (with_map, softmax)) * dtype.itemsize // 2
        if launch is backward:
            assert code.count(r"LDG\.E(\.EL)?\.128", *row) == code.count("LDG", *row) == dtype.itemsize // 2
    for launch in (loss, gather, again):
        code = launch.machine_code(tmp_path)
        assert code.stack == 0
        assert code.registers <= 96


# Every size in turn 1, multiples of 16, neither; strides aligned and not; one pass a row and several; many classes.
CALLS = {
    "one pixel": (torch.zeros(1, 19, 1, 1), (1, 1)),
    "two classes": (torch.zeros(2, 2, 2, 3), (9, 17), F32),
    "several passes, float32": (torch.zeros(1, 19, 2, 3), (16, 64), F32),
    "multiples of 16": (torch.zeros(16, 16, 17, 17, dtype=F16), (32, 32), F16, torch.int64),
    "no multiples": (torch.zeros(3, 41, 5, 3), (31, 7), F32, torch.int32),
    "odd addresses": (torch.zeros(1, 23, 5, 7, dtype=BF16)[:, 1:20, 1:, 3:], (20, 31), BF16, torch.int16),
    "150 classes": (torch.zeros(1, 150, 3, 3), (17, 17)),
    "weights": (torch.zeros(1, 19, 3, 3), (17, 17), BF16, torch.uint8, torch.zeros(1, 17, 17)),
}


@pytest.mark.parametrize(("few", "many"), [(128, 1024), (1045, 8352), (3, 2), (2, 9), (7, 7)])
def test_no_cell_has_more_pixels_than_one_pass_takes(few, many):
    """In a row of 8352 the last cell has nine by rounding alone, at 7.9990 for a cell."""
    from simfast.ops.upsampled_triton import most_pixels

    position = np.arange(many, dtype=np.float32) * np.float32((few - 1) / (many - 1))
    cell = np.minimum(position.astype(int), few - 2)
    assert np.bincount(cell).max() <= most_pixels(few, many)


@compiled
@pytest.mark.parametrize("case", CALLS)
def test_any_call_compiles_without_spills(case, tmp_path):
    noted = launches(90, *CALLS[case])
    assert len(noted) == 8
    for launch in noted:
        assert launch.machine_code(tmp_path).stack == 0


if __name__ == "__main__":
    for case in INTERPRETED:
        case()
        print(case.__name__)
