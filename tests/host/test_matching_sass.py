"""Machine code of the kernels that join regions and banks: whole vectors at a time, loads that wait for none other."""

import shutil

import pytest
import sass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the path: the CUDA compiler is not installed"),
]


@pytest.mark.parametrize(("dtype", "store"), [("float", "STG.E.128"), ("__nv_bfloat16", "STG.E.64")])
def test_a_ring_copies_ten_rows_at_once(dtype, store, tmp_path):
    found = {kernel.name: kernel for kernel in sass.compile_source("ring_write", tmp_path)}
    kernel = found[f"ring_write_kernel<{dtype}, true>"]
    assert kernel.count(r"LDG\.E\.128") == 10
    assert kernel.count(store) >= 10
    assert kernel.longest_run("LDG") >= 8  # 9 or 10
    assert kernel.registers <= 96  # 75: one block of 512 threads a multiprocessor, and there are fewer rings than those


def test_the_losses_load_a_class_at_once(tmp_path):
    found = {kernel.name: kernel for kernel in sass.compile_source("matching_losses", tmp_path)}
    assert found["matching_losses_kernel"].longest_run("LDG") >= 24  # 30: three arrays of ten slots
