"""The Triton kernels of nearest_l1 without a GPU: run by Triton's interpreter, and compiled to machine code.

The same kernels on a GPU: test_nearest.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

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
    check(*whole_numbers(9, 2, 17, 512, brain, half), tile=Tile(rows=4, width=64, warps=1))
    check(*whole_numbers(258, 1, 3, 5))  # more queries than one program looks at
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
    nan_comes_out_and_what_is_not_filled_stays_out,
    wrong_classes_and_counts_lead_nowhere,
    backward_scales_the_signs_and_is_zero_without_a_row,
]


# ----------------------------------------------------------------------------------------------------------------------
# Compiled
# ----------------------------------------------------------------------------------------------------------------------

POINTERS = {
    "queries": "*fp32",
    "classes": "*i64",
    "bank": "*fp32",
    "starts": "*i64",
    "filled": "*i64",
    "shares": "*fp32",
    "distances": "*fp32",
    "rows": "*i64",
    "signs": "*i8",
    "grad": "*fp32",
    "grad_queries": "*fp32",
}
# Kernel, its pointers' dtypes, constants, sizes that are multiples of 16, and the most registers: 128 let four programs
# of the first kernel onto a multiprocessor.
TILE = {"ROWS": 16, "WIDTH": 128, "QUERIES": 256}
SIZES = ("D", "query_stride", "bank_stride")
COMPILED = {
    "float32": ("compare", {}, TILE | {"EVEN": True, "starts": None}, SIZES, 168),
    "bfloat16 bank": ("compare", {"bank": "*bf16"}, TILE | {"EVEN": True}, SIZES, 128),
    "any width": ("compare", {"queries": "*fp16", "bank": "*bf16"}, TILE | {"EVEN": False, "starts": None}, (), 255),
    "pick": ("pick", {"bank": "*bf16"}, {"D": 2048, "CHUNKS": 4, "ROWS": 512, "WIDTH": 1024}, SIZES, 64),
    "backward": ("backward", {"grad_queries": "*bf16"}, {"D": 2048, "WIDTH": 1024}, (), 64),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled")
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("case", COMPILED)
def test_compiles_within_limits(case, capability, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from simfast.ops import nearest_triton

    step, pointers, constants, multiples, most_registers = COMPILED[case]
    kernel = getattr(nearest_triton, f"nearest_l1_{step}_kernel")
    types = {name: (POINTERS | pointers).get(name, "i32") for name in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = [
        i for i, (name, kind) in enumerate(types.items()) if kind[0] == "*" or (name in multiples and kind == "i32")
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    assert compiled.metadata.shared <= 8192
    registers, stack, local = resources(compiled.asm["cubin"], tmp_path)
    assert stack == local == 0, "registers are spilled"
    assert registers <= most_registers


def resources(cubin: bytes, folder: Path) -> tuple[int, int, int]:
    """Registers, bytes of stack and of local memory of a thread, as the tool that Triton brings reports them."""
    import triton.backends.nvidia

    (folder / "kernel.cubin").write_bytes(cubin)
    tool = Path(triton.backends.nvidia.__path__[0], "bin", "cuobjdump")
    report = subprocess.run([tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report.stdout)
    return tuple(int(number) for number in found.groups())


if __name__ == "__main__":
    for case in INTERPRETED:
        case()
        print(case.__name__)
