"""The Triton kernel of conv1x1_statistics without a GPU: run by Triton's interpreter, and compiled to machine code.

The same kernel on a GPU: test_conv1x1_statistics.py.
"""

import os
import subprocess
import sys

import pytest
import torch

from simfast import reference
from simfast.testing import assert_same

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ROWS = 128

# ----------------------------------------------------------------------------------------------------------------------
# Interpreted. Triton decides on import whether to interpret, so that this takes a process of its own: this very file.
# ----------------------------------------------------------------------------------------------------------------------


def test_interpreted_kernel_equals_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [case.__name__ for case in INTERPRETED]


def whole_numbers(images, depth, height, width, channels, dtype=F32):
    """Sums of products of these are exact in any order; the interpreter does not round to bfloat16 as a GPU does."""
    g, most = torch.Generator().manual_seed(0), 1 if dtype == BF16 else 2
    x = torch.randint(-most, most + 1, (images, depth, height, width), generator=g).to(dtype)
    weight = torch.randint(-most, most + 1, (channels, depth, 1, 1), generator=g).to(dtype)
    return x.contiguous(memory_format=torch.channels_last), weight


def check(x, weight, tile):
    from simfast.ops import conv1x1_statistics_triton

    out, partials = conv1x1_statistics_triton.forward(x, weight, ROWS, True, tile)
    expected, statistics, _ = reference.conv1x1_statistics(x, weight)
    assert_same(out, expected, "out")
    assert out.stride() == expected.stride()
    assert partials.dtype == F32
    scale = expected.float().abs().max()
    torch.testing.assert_close(partials[0], statistics[0], rtol=1e-6, atol=1e-6 * float(scale))
    torch.testing.assert_close(partials[1], statistics[1], rtol=1e-5, atol=1e-6 * float(scale**2))


def any_shape_dtype_and_tile():
    from simfast.ops.conv1x1_statistics_triton import Tile

    tiles = Tile(64, 32, 2, 4), Tile(128, 64, 3, 4), Tile(256, 16, 4, 8)
    check(*whole_numbers(2, 64, 9, 15, 64), tiles[0])
    check(*whole_numbers(1, 96, 16, 24, 130, BF16), tiles[0])
    check(*whole_numbers(1, 33, 7, 19, 5, F16), tiles[0])
    check(*whole_numbers(3, 70, 8, 16, 257, BF16), tiles[1])
    check(*whole_numbers(1, 17, 11, 13, 300), tiles[2])
    check(*whole_numbers(1, 1, 1, 1, 1), tiles[0])
    check(*whole_numbers(1, 2, 1, 129, 1, BF16), tiles[1])


def any_strides():
    from simfast.ops.conv1x1_statistics_triton import Tile

    x, weight = whole_numbers(2, 40, 8, 9, 70)
    wide = torch.full((2, 45, 16, 18), torch.nan)
    wide[:, 2:42, ::2, 1::2] = x
    filters = torch.full((70, 42, 2, 1), torch.nan)
    filters[:, 1:41, :1] = weight
    for other in (x.contiguous(), wide[:, 2:42, ::2, 1::2], x.mT.contiguous().mT):
        check(other, weight, Tile(64, 16, 2, 4))
    check(x, filters[:, 1:41, :1], Tile(64, 16, 2, 4))


def statistics_are_of_what_was_written_and_do_not_cancel():
    """A mean far from 0 beside a small spread, and values between those that the dtype has."""
    from simfast.ops.conv1x1_statistics_triton import Tile, forward

    g = torch.Generator().manual_seed(1)
    for dtype in (F32, F16):
        x = torch.cat([torch.ones(1, 1, 10, 30), torch.randn(1, 3, 10, 30, generator=g)], 1).to(dtype)
        weight = torch.cat([torch.full((6, 1, 1, 1), 100.0), torch.full((6, 3, 1, 1), 0.125)], 1).to(dtype)
        x, tile = x.contiguous(memory_format=torch.channels_last), Tile(64, 16, 2, 4)
        out, partials = forward(x, weight, ROWS, True, tile)
        for p, chunk in enumerate(out.permute(0, 2, 3, 1).flatten(0, 2).double().split(ROWS)):
            mean = chunk.mean(0)
            torch.testing.assert_close(partials[0, p], mean.float(), rtol=1e-6, atol=0)
            m2 = (chunk - mean).square().sum(0)
            torch.testing.assert_close(partials[1, p], m2.float(), rtol=1e-4, atol=0)


def what_is_not_there_is_neither_read_nor_counted():
    """NaN of one chunk stays there, and of one channel too; infinity times a weight of 0 is NaN."""
    from simfast.ops.conv1x1_statistics_triton import Tile, forward

    x, weight = whole_numbers(1, 20, 5, 60, 70)
    x[0, 3, 0, 0], weight[65, 7], x[0, 4, 4, 59] = torch.nan, torch.nan, torch.inf
    weight[:, 4], weight[1, 4] = 1, 0
    out, partials = forward(x, weight, ROWS, True, Tile(64, 16, 2, 4))
    expected = torch.full((70, 5, 60), False)
    expected[:, 0, 0], expected[65], expected[1, 4, 59] = True, True, True
    assert_same(out[0].isnan(), expected)
    clean = torch.arange(70) != 65
    assert partials[0, 0].isnan().all()
    assert_same(partials[0, 1].isnan(), ~clean)
    assert not partials[0, 2, clean & (torch.arange(70) != 1)].isnan().any()
    assert partials[1, 1, clean].isfinite().all()


INTERPRETED = [
    any_shape_dtype_and_tile,
    any_strides,
    statistics_are_of_what_was_written_and_do_not_cancel,
    what_is_not_there_is_neither_read_nor_counted,
]


def have_the_interpreter_multiply_bfloat16():
    """It holds them as integers of 16 bits, and multiplies those."""
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply = InterpreterBuilder.create_dot

    def widened(x):
        if str(x.dtype.scalar) != "bf16":
            return x
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), language.float32)

    InterpreterBuilder.create_dot = lambda self, a, b, *others: multiply(self, widened(a), widened(b), *others)


# ----------------------------------------------------------------------------------------------------------------------
# Compiled: what the JIT makes of a call's very arguments
# ----------------------------------------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set: nothing is compiled"
)


def launch(capability, pixels, depth, channels, dtype=BF16, tf32=True):
    """Of a call's arguments, on a device of this capability."""
    from triton_launches import compiled_launches

    from simfast.ops.conv1x1_statistics_triton import forward, tile_of

    x = torch.zeros(1, 1, pixels, depth, dtype=dtype).permute(0, 3, 1, 2)
    tile = tile_of(pixels, depth, channels, ROWS, dtype, divmod(capability, 10), tf32)
    with compiled_launches(capability) as noted:
        forward(x, torch.zeros(channels, depth, 1, 1, dtype=dtype), ROWS, tf32, tile)
    assert [one.name for one in noted] == ["conv1x1_statistics_kernel"]
    return noted[0]


# pixels, channels in, channels out: of a ResNet-101 at 1280x720 and at 1024x512, by what tile they get on a Hopper.
RESNET = {
    "64 wide": (58101, 64, 64),
    "128 wide": (14651, 256, 1024),
    "128 wide, few programs otherwise": (8385, 1024, 256),
    "256 wide": (14651, 1024, 256),
}


@compiled
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("dtype", [BF16, pytest.param(F32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("case", RESNET)
def test_products_are_tensor_cores_fed_by_wide_asynchronous_copies(case, dtype, capability, tmp_path):
    launched = launch(capability, *RESNET[case], dtype)
    code = launched.machine_code(tmp_path)
    assert code.stack == 0
    product = {90: "HGMMA", 100: "UTC.*MMA"}.get(capability, "HMMA")
    loop = next(loop for loop in code.loops() if code.count(product, *loop))  # the innermost: over K
    copies = [i.opcode for i in code.instructions if i.opcode.startswith("LDGSTS")]
    assert copies
    assert all(".128" in copy for copy in copies)
    assert code.count("LDGSTS", *loop) >= 4
    assert code.count(r"LDG\.|STS|STG|SHFL|LDL|STL", *loop) == 0
    assert code.count("BAR", *loop) <= 3
    assert code.count("BAR") <= 42
    stores = [i.opcode for i in code.instructions if i.opcode.startswith("STG")]
    assert sum(".128" in store for store in stores) >= len(stores) - 2  # all but those of the statistics
    if capability == 90 and dtype == BF16:
        assert code.count("SHFL") <= 16  # a channel's pixels are in four threads
        # So many programs fit a multiprocessor: of 64 channels three, of 128 two, of 256 one.
        resident = {"64 wide": 3, "256 wide": 1}.get(case, 2)
        warps = 8 if case == "256 wide" else 4
        assert resident * warps * 32 * code.registers <= 65536
        assert resident * (launched.shared + 1024) <= 228 * 1024


# K and N: 1, multiples of 16 or not, of a tile or not; one pixel, one more than a chunk.
CALLS = {
    "one of each": (1, 1, 1),
    "one channel in": (300, 1, 40),
    "one channel out": (300, 64, 1),
    "multiples of 16": (129, 80, 48),
    "no multiples": (14651, 1001, 255),
    "odd channels out alone": (14651, 1024, 255),
    "odd channels in alone": (14651, 1025, 256),
}


@compiled
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize(("dtype", "tf32"), [(BF16, True), (F32, True), (F32, False)], ids=str)
@pytest.mark.parametrize("case", CALLS)
def test_any_call_compiles_without_spills(case, dtype, tf32, capability, tmp_path):
    assert launch(capability, *CALLS[case], dtype, tf32).machine_code(tmp_path).stack == 0


@compiled
def test_a_shape_has_its_tile_by_rule():
    from simfast.ops.conv1x1_statistics_triton import ENOUGH, tile_of

    for pixels, depth, channels in RESNET.values():
        for capability in ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0)):
            tile = tile_of(pixels, depth, channels, ROWS, BF16, capability, True)
            assert -(-pixels // ROWS) * -(-channels // tile.columns) >= ENOUGH
            assert tile.columns <= max(channels, 64)
    assert launch(90, *RESNET["256 wide"]).grid == (115, 1, 1)
    assert launch(90, *RESNET["128 wide, few programs otherwise"]).grid == (132, 1, 1)


def test_more_pixels_than_can_be_counted_are_refused():
    from simfast.ops.conv1x1_statistics_triton import forward

    x = torch.zeros(1, 1, 1, 1).expand(2, 1, 2**15, 2**15)
    with pytest.raises(ValueError, match=r"^conv1x1_statistics: pixels must be less than 2\^31, got 2147483648"):
        forward(x, torch.zeros(1, 1, 1, 1), ROWS, True)


if __name__ == "__main__":
    have_the_interpreter_multiply_bfloat16()
    for case in INTERPRETED:
        case()
        print(case.__name__)
