"""The Triton kernels of nearest_l1 without a GPU: run by Triton's interpreter, and compiled to machine code.

The same kernels on a GPU: test_nearest.py.
"""

import os
import subprocess
import sys

import pytest
import torch

from simfast import reference
from simfast.testing import assert_same

# ----------------------------------------------------------------------------------------------------------------------
# Interpreted. Triton decides on import whether to interpret, so that this takes a process of its own: this very file.
# ----------------------------------------------------------------------------------------------------------------------


def test_interpreted_kernels_equal_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [case.__name__ for case in INTERPRETED]


def nearest(queries, classes, bank, filled, **options):
    from simfast.ops import nearest_triton

    flat = bank.flatten(0, 1)
    return nearest_triton.forward(queries, classes, flat, None, filled, bank.shape[1], **options)


def whole_numbers(num_queries, num_classes, max_rows, width, queries=torch.float32, bank=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-2, 3, (num_queries, width), generator=g).to(queries),
        torch.randint(-1, num_classes, (num_queries,), generator=g),
        torch.randint(-2, 3, (num_classes, max_rows, width), generator=g).to(bank),
        torch.randint(0, max_rows + 1, (num_classes,), generator=g),
    )


def check(queries, classes, bank, filled, **options):
    distances, rows, signs = nearest(queries, classes, bank, filled, **options)
    expected = reference.nearest_l1(queries, classes, bank, filled)
    assert_same(distances, expected[0], "distances")
    assert_same(rows, expected[1], "rows")
    row = bank[classes.clamp(min=0), rows.clamp(min=0)].float() if bank.numel() else queries.float()
    sign = torch.where(rows[:, None] >= 0, (queries.float() - row).sign(), 0).to(torch.int8)
    assert_same(signs, sign, "signs")


def any_shape_dtype_and_tile():
    from simfast.ops.nearest_triton import Tile

    half, brain = torch.float16, torch.bfloat16
    check(*whole_numbers(14, 3, 35, 130))
    check(*whole_numbers(6, 2, 20, 1024, torch.float32, brain))
    check(*whole_numbers(9, 2, 17, 512, brain, half), tile=Tile(rows=4, lanes=16, warps=1))
    check(*whole_numbers(258, 1, 3, 5))  # more queries than are looked at together
    check(*whole_numbers(60, 45, 2, 20))  # more classes than a mask has bits
    check(*whole_numbers(90, 255, 2, 20))
    check(*whole_numbers(1, 1, 1, 1))
    for empty in ((0, 2, 3, 4), (3, 0, 3, 4), (3, 2, 0, 4), (3, 2, 3, 0)):
        check(*whole_numbers(*empty))


def flat_banks_of_unequal_classes():
    from simfast.ops import nearest_triton

    queries, classes, bank, _ = whole_numbers(20, 2, 6, 40)
    flat = torch.cat([bank[1, :2], torch.full((1, 40), torch.nan), bank[0]])
    starts, filled = torch.tensor([3, 0]), torch.tensor([5, 2])
    distances, rows, _ = nearest_triton.forward(queries, classes, flat, starts, filled, 6)
    expected = reference.nearest_l1(queries, classes, bank, filled)
    assert_same(distances, expected[0])
    assert_same(rows, expected[1])


def classes_that_share_rows_need_more_tiles_than_there_are_programs():
    from simfast.ops import nearest_triton

    queries, classes, bank, _ = whole_numbers(12, 1, 100, 20)
    classes = torch.arange(12) % 6 - 1
    filled = torch.tensor([100, 0, 65, 99, 1])
    got = nearest_triton.forward(queries, classes, bank[0], torch.zeros(5, dtype=torch.int64), filled, 100)
    expected = reference.nearest_l1(queries, classes, bank.expand(5, 100, 20), filled)
    assert_same(got[0], expected[0])
    assert_same(got[1], expected[1])


def nan_comes_out_and_what_is_not_filled_stays_out():
    inf, nan = torch.inf, torch.nan
    bank = torch.tensor([[[0.0, 1.0], [nan, 0.0], [nan, nan]], [[inf, 0.0], [1.0, 0.0], [nan, nan]]])
    queries = torch.tensor([[0.0, 1.0], [0.0, 1.0], [nan, 1.0], [inf, 0.0], [-inf, 0.0]])
    distances, rows, _ = nearest(queries, torch.tensor([0, 1, 1, 1, 1]), bank, torch.tensor([3, 2]))
    expected = torch.tensor([nan, 2.0, nan, nan, inf])
    torch.testing.assert_close(distances, expected, rtol=0, atol=0, equal_nan=True)
    assert rows.tolist() == [1, 1, 0, 0, 0]


def wrong_classes_and_counts_lead_nowhere():
    from simfast.ops import nearest_triton

    queries, _, bank, _ = whole_numbers(7, 2, 4, 10)
    classes = torch.tensor([2, -2, 2**40, -(2**63), 2**63 - 1, 2**32, 0])
    assert nearest(queries, classes, bank, torch.tensor([-5, 4]))[1].tolist() == [-1] * 7
    for k in (0, 1):
        check(queries, classes * 0 + k, bank, torch.tensor([4, 4]))
        whole = nearest(queries, classes * 0 + k, bank, torch.tensor([4, 4]))
        too_many = nearest(queries, classes * 0 + k, bank, torch.tensor([2**40, 5]))
        for got, want in zip(too_many, whole, strict=True):
            assert_same(got, want)
    flat, starts = bank.flatten(0, 1), torch.tensor([6, -1])
    beyond = nearest_triton.forward(queries, torch.arange(7) % 2, flat, starts, torch.tensor([4, 4]), 4)
    cut = nearest_triton.forward(queries, torch.arange(7) % 2, flat, starts.abs(), torch.tensor([2, 0]), 4)
    for got, want in zip(beyond, cut, strict=True):
        assert_same(got, want)


def backward_scales_the_signs_and_is_zero_without_a_row():
    from simfast.ops import nearest_triton

    signs = torch.randint(-1, 2, (5, 1100), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    rows = torch.tensor([0, -1, 7, -1, 2])
    grad = torch.tensor([2.0, torch.nan, 0.375, torch.inf, -1.0])  # short: the interpreter does not round as a GPU does
    expected = torch.where(rows[:, None] >= 0, grad[:, None] * signs, 0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert_same(nearest_triton.backward(grad, rows, signs, dtype), expected.to(dtype))
    one = torch.ones(1).expand(5)
    assert_same(nearest_triton.backward(one, rows.clamp(min=0), signs, torch.float32), signs.float())


INTERPRETED = [
    any_shape_dtype_and_tile,
    flat_banks_of_unequal_classes,
    classes_that_share_rows_need_more_tiles_than_there_are_programs,
    nan_comes_out_and_what_is_not_filled_stays_out,
    wrong_classes_and_counts_lead_nowhere,
    backward_scales_the_signs_and_is_zero_without_a_row,
]


# ----------------------------------------------------------------------------------------------------------------------
# Compiled: what the JIT makes of a call's very arguments
# ----------------------------------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled"
)
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def launches(capability, arguments, **options):
    from triton_launches import compiled_launches

    from simfast.ops import nearest_triton

    with compiled_launches(capability) as noted:
        _, rows, signs = nearest_triton.forward(*arguments, **options)
        nearest_triton.backward(torch.ones(len(rows)), rows, signs, arguments[0].dtype)
    return noted


def matching(queries=F32, bank=F32):
    """The 118 slots of an image against 8 stuff classes and 11 things."""
    sizes = torch.tensor([50] * 8 + [500] * 11)
    classes = torch.cat([torch.arange(8), torch.arange(8, 19).repeat_interleave(10)])
    flat = torch.zeros(int(sizes.sum()) + 1, 2048, dtype=bank)
    return torch.zeros(118, 2048, dtype=queries), classes, flat, sizes.cumsum(0) - sizes, sizes, 500


def even(N=7, K=3, R=5, D=2048, queries=F32, bank=F32):
    """Banks of one size."""
    integers = torch.zeros(N, dtype=torch.int64), torch.zeros(K, dtype=torch.int64)
    return torch.zeros(N, D, dtype=queries), integers[0], torch.zeros(K * R, D, dtype=bank), None, integers[1], R


def ragged(N=7, K=3, T=40, D=2048, max_rows=5, queries=F32, bank=F32):
    """Banks that may differ; the flat bank takes no memory."""
    integers = torch.zeros(N, dtype=torch.int64), torch.zeros(K, dtype=torch.int64)
    flat = torch.zeros(1, D, dtype=bank).expand(T, D)
    return torch.zeros(N, D, dtype=queries), integers[0], flat, integers[1], integers[1], max_rows


def shifted(arguments):
    """The same, in memory of odd addresses and odd strides."""
    queries, classes, bank, *others = arguments
    views = [torch.zeros(len(x), x.shape[1] + 3, dtype=x.dtype)[:, 1:-2] for x in (queries, bank)]
    return views[0], classes, views[1], *others


# The most instructions a query: 128 subtract and add; 177 came out for queries of float32, 205 and 221 of the others.
MATCHING = {
    "float32": (matching(), 220),
    "bfloat16 bank": (matching(bank=BF16), 220),
    "bfloat16": (matching(BF16, BF16), 275),
    "float16 and bfloat16": (matching(F16, BF16), 255),
}


@compiled
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("case", MATCHING)
def test_a_query_costs_no_barrier_and_few_instructions(case, capability, tmp_path):
    arguments, most_instructions = MATCHING[case]
    compare, pick, backward = launches(capability, arguments)
    chunks, tiles, _ = compare.grid
    # 192 tiles of 32 rows: eight chunks of each, and at most one program without work for each class.
    assert chunks == 8
    assert 192 <= tiles <= 192 + 19
    code = compare.machine_code(tmp_path)
    assert code.registers <= 128  # four programs of four warps on a multiprocessor
    assert code.shared <= 2048
    loop = next(loop for loop in code.loops() if code.count("FADD", *loop) > 50)  # the innermost: a query's
    assert code.count("BAR|LDS|STS|LDL|STL", *loop) == 0
    if capability == 100:  # adds two values at a time, and may move them about for that
        assert code.stack <= 16
    else:
        assert code.stack == 0
        assert code.count("", *loop) <= most_instructions
    for launch in (pick, backward):
        code = launch.machine_code(tmp_path)
        assert code.stack == 0
        assert code.registers <= 56


def test_more_rows_than_can_be_counted_are_refused():
    from simfast.ops import nearest_triton

    for rows in (2**60, 2**31):
        with pytest.raises(ValueError, match=rf"^nearest_l1: .* must be less than 2\^31, got 7 and 1 times {rows}"):
            nearest_triton.forward(*ragged(K=1, T=rows, D=1)[:3], None, torch.zeros(1, dtype=torch.int64), rows)


# Every size in turn 1, all at once, multiples of 16, neither; strides and addresses aligned and not; 64-bit sizes.
CALLS = {
    "one query": even(N=1),
    "one class": even(K=1),
    "one row a class": even(R=1),
    "one value": even(D=1),
    "one of each": even(1, 1, 1, 1),
    "one row in a flat bank": ragged(T=1, max_rows=1),
    "at most one row a class": ragged(max_rows=1),
    "one of each, flat": ragged(1, 1, 1, 1, 1),
    "multiples of 16": even(16, 16, 16, 16),
    "multiples of 16, flat": ragged(16, 16, 32, 256, 16, bank=BF16),
    "no multiples": even(7, 3, 5, 301),
    "no multiples, flat": ragged(7, 3, 41, 301, 5, F16, BF16),
    "odd addresses": shifted(even()),
    "odd addresses, bfloat16 bank": shifted(even(bank=BF16)),
    "odd addresses of queries": (*shifted(even())[:2], *even()[2:]),
    "odd addresses of the bank": (*even()[:2], *shifted(even(bank=BF16))[2:]),
    "more than 2^31 rows": ragged(T=2**31 + 5),
    "many classes": even(K=300),
    "no rows": even(R=0),
    "no width": even(D=0),
}


@compiled
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("case", CALLS)
def test_any_call_compiles_without_spills(case, capability, tmp_path):
    noted = launches(capability, CALLS[case])
    assert "nearest_l1_pick_kernel" in [launch.name for launch in noted]
    for launch in noted:
        assert launch.machine_code(tmp_path).stack == 0


if __name__ == "__main__":
    for case in INTERPRETED:
        case()
        print(case.__name__)
