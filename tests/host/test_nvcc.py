"""nvcc compiles every CUDA source for every architecture, with warnings as errors and nothing spilled to memory."""

import re
import shutil
import subprocess

import host_build
import pytest

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
STATIC_SHARED = 48 * 1024  # bytes a block may have without asking

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the path: the CUDA compiler is not installed"),
]


@pytest.mark.parametrize("source", host_build.SOURCES)
def test_compiles_for_every_architecture_without_spills(source, tmp_path):
    command = ["nvcc", "-std=c++17", "-O3", "--threads", "2", "-fatbin", f"-I{host_build.CSRC}"]
    command += ["-Werror", "all-warnings", "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command += [str(host_build.CSRC / "cuda" / f"{source}.cu"), "-o", str(tmp_path / "out.fatbin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    kernels = re.findall(r"Used (\d+) registers", report)
    assert len(spills) == len(kernels) > 0
    assert len(kernels) % len(ARCHITECTURES) == 0
    assert set(spills) == {("0", "0")}, report
    assert all(int(size) <= STATIC_SHARED for size in re.findall(r"(\d+) bytes smem", report))
