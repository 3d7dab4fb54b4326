"""What the labelling kernels cost, as nvcc makes them for sm_90. Bounds leave a quarter above what was counted."""

import shutil

import pytest
import sass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the path: the CUDA compiler is not installed"),
]

SOURCES = ("components", "regions", "regions_small")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sass")
    return {kernel.name: kernel for source in SOURCES for kernel in sass.compile_source(source, folder)}


def loop_with(kernel: sass.Kernel, **counts: int) -> int:
    """Instructions of the shortest loop that holds these counts, opcode by opcode."""
    for first, last in kernel.loops():
        if all(kernel.count(opcode, first, last) == count for opcode, count in counts.items()):
            return kernel.count("", first, last)
    raise AssertionError(f"{kernel.name} has no loop with {counts}")


def test_nothing_is_kept_in_local_memory(kernels):
    assert {name: k.stack for name, k in kernels.items() if k.stack or k.count("LDL|STL")} == {}


def test_no_division_is_a_call(kernels):
    """As one of 64 bits would be, of some seventy instructions."""
    assert [name for name, kernel in kernels.items() if kernel.count("CALL")] == []


def test_a_multiprocessor_holds_as_many_blocks_as_it_is_given(kernels):
    # 2048 x 1024 pixels are four tiles for each of 132 multiprocessors; of 228 KB, 1 KB a block is the system's.
    for name, kernel in kernels.items():
        if "tile" in name:
            assert kernel.registers <= 64
            assert kernel.shared <= 48 * 1024
            assert 4 * (kernel.shared + 1024) <= 228 * 1024
        if "small" in name:
            assert kernel.registers <= 64  # for 1,024 threads
            assert kernel.shared <= 6 * 1024  # counted: 4,368, beside the 84 KB of a 91 x 161 map


@pytest.mark.parametrize("label", ["unsigned char", "short", "int", "long"])
@pytest.mark.parametrize("kernel", ["components_tile_kernel", "regions_tile_kernel", "regions_small_kernel"])
def test_eight_loads_are_in_flight(kernels, kernel, label):
    assert kernels[f"{kernel}<{label}>"].longest_run("LDG") >= 8


def test_bytes_in_whole_units_are_one_load_a_thread(kernels):
    assert kernels["components_tile_kernel<unsigned char>"].count(r"LDG\.E\.128") == 1


def test_instructions_of_the_tile_kernels(kernels):
    """They stand in line but for the loops over runs and links; 4,096 pixels are 8 passes of 32 x 16."""
    assert len(kernels["components_tile_kernel<unsigned char>"].instructions) <= 1500  # counted: 1,200
    assert len(kernels["components_tile_kernel<long>"].instructions) <= 4000  # 3,216: eight bytes a label
    assert len(kernels["regions_tile_kernel<long>"].instructions) <= 3600  # 2,880, of them 1,000 for wide class ids


@pytest.mark.parametrize("name", ["components_tile_kernel<unsigned char>", "regions_small_kernel<long>"])
def test_a_union_is_few_instructions(kernels, name):
    assert loop_with(kernels[name], ATOMS=1, LDS=5) <= 100  # counted: 81; by up to 32 lanes at once


def test_instructions_of_the_small_kernel(kernels):
    kernel = kernels["regions_small_kernel<long>"]
    assert loop_with(kernel, LDG=8, LDS=8, STS=8) <= 127  # counted: 101, or 13 for 32 pixels
    assert loop_with(kernel, STG=8, LDS=16, FLO=8) <= 159  # counted: 127, or 16 for 32 pixels
    assert loop_with(kernel, LDS=5, STS=1, ATOMS=2) <= 85  # counted: 68 a run; by up to 32 lanes at once
