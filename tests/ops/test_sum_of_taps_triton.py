"""The Triton kernels of sum_of_taps without a GPU: run by Triton's interpreter, and compiled to machine code.

The same kernels on a GPU: test_sum_of_taps.py.
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


def check(size, num_classes, dilations, more=0, dtype=torch.float32, seed=0):
    """Of small whole numbers, whose sums are exact: bit by bit, the gradient too."""
    from simfast.ops import sum_of_taps_triton

    g = torch.Generator().manual_seed(seed)
    columns = (1 + 8 * len(dilations)) * num_classes
    products = torch.randint(-2, 3, (*size, columns + more), generator=g).to(dtype)
    products[..., columns:] = torch.nan  # not to be read
    bias = torch.randint(-9, 9, (num_classes,), generator=g).float()
    out = sum_of_taps_triton.forward(products, bias, dilations)
    leaf = products.clone().requires_grad_()
    expected = reference.sum_of_taps(leaf, bias, dilations)
    assert_same(out, expected.detach(), "sums")
    assert out.permute(0, 2, 3, 1).is_contiguous()
    grad = torch.randint(-9, 9, out.shape, generator=g).to(dtype)
    (wanted,) = torch.autograd.grad(expected, leaf, grad)
    assert_same(sum_of_taps_triton.backward(grad, dilations, columns + more), wanted, "gradient")


def any_map_and_dilations():
    check((2, 7, 13), 19, [6, 12, 18, 24], more=5)
    check((1, 5, 9), 19, [1])
    check((2, 9, 6), 3, [2, 5], more=1)
    check((1, 1, 1), 2, [1, 6])
    check((3, 1, 8), 1, [3])
    check((1, 8, 1), 1, [1, 1])


def dilations_beyond_any_map():
    check((2, 3, 4), 5, [3, 4, 2**30 - 1])


def any_number_of_classes_and_dtype():
    for num_classes in (1, 2, 16, 33, 150):
        check((1, 4, 5), num_classes, [1, 2], dtype=torch.bfloat16)
    check((2, 6, 5), 19, [2, 3], 2, torch.float16)


def nothing_in_nothing_out():
    for size in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        check(size, 3, [1])


def any_strides():
    from simfast.ops import sum_of_taps_triton

    g = torch.Generator().manual_seed(0)
    products = torch.randint(-2, 3, (2, 18, 6, 5), generator=g).float().permute(0, 3, 2, 1)
    bias = torch.arange(4.0)[::2]
    out = sum_of_taps_triton.forward(products, bias, [1])
    assert_same(out, reference.sum_of_taps(products, bias, [1]))
    grad = torch.randint(-2, 3, out.shape, generator=g).float()
    assert_same(sum_of_taps_triton.backward(grad, [1], 18), sum_of_taps_triton.backward(grad.mT.clone().mT, [1], 18))


def sums_are_float32():
    from simfast.ops import sum_of_taps_triton

    # 256 and eight times 1: in bfloat16 each 1 alone would be lost.
    products = torch.ones(1, 3, 3, 9, dtype=torch.bfloat16)
    products[..., 0] = 256
    assert sum_of_taps_triton.forward(products, torch.zeros(1), [1])[0, 0, 1, 1] == 264


INTERPRETED = [
    any_map_and_dilations,
    dilations_beyond_any_map,
    any_number_of_classes_and_dtype,
    nothing_in_nothing_out,
    any_strides,
    sums_are_float32,
]


# ----------------------------------------------------------------------------------------------------------------------
# Compiled: what the JIT makes of a call's very arguments
# ----------------------------------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled"
)
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def launches(capability, size, num_classes, dilations, columns, dtype):
    from triton_launches import compiled_launches

    from simfast.ops import sum_of_taps_triton

    with compiled_launches(capability) as noted:
        out = sum_of_taps_triton.forward(torch.zeros(*size, columns, dtype=dtype), torch.zeros(num_classes), dilations)
        sum_of_taps_triton.backward(out, dilations, columns)
    return noted


PAPER = (1, 91, 161), 19, [6, 12, 18, 24], 632


@compiled
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_the_papers_head_takes_no_spill_no_barrier_and_wide_stores(capability, dtype, tmp_path):
    forward, backward = launches(capability, *PAPER, dtype)
    code = forward.machine_code(tmp_path)
    assert code.stack == 0
    assert code.registers <= 176
    # The bias is dealt out once; the 33 loads of each value wait for no other thread.
    assert code.count("BAR") <= 3
    assert code.count("LDL|STL") == 0
    code = backward.machine_code(tmp_path)
    assert code.stack == 0
    assert code.registers <= 96
    assert code.count("LDL|STL") == 0
    assert code.count(r"STG\.E\.128") >= 1
    assert code.count(r"STG") == code.count(r"STG\.E\.128")


CALLS = {
    "one of each": ((1, 1, 1), 1, [1], 9),
    "one class": ((2, 16, 16), 1, [16], 16),
    "multiples of 16": ((16, 16, 16), 16, [16, 32], 272),
    "many classes": ((2, 5, 7), 150, [6, 12], 2550),
    "huge dilation": ((1, 5, 7), 2, [2**30 - 1], 18),
}


@compiled
@pytest.mark.parametrize("case", CALLS)
def test_any_call_compiles_without_spills(case, tmp_path):
    noted = launches(90, *CALLS[case], BF16)
    assert [launch.name for launch in noted] == ["sum_of_taps_kernel", "sum_of_taps_backward_kernel"]
    for launch in noted:
        assert launch.machine_code(tmp_path).stack == 0


if __name__ == "__main__":
    for case in INTERPRETED:
        case()
        print(case.__name__)
