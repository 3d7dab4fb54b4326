"""The native library as a file: what it may depend on, what is said when it is missing, kernels under sanitizers."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

import simfast
from simfast import ops

ROOT = Path(__file__).parents[1]
LIBRARY = Path(simfast.__file__).with_name("_simfast.so")
USE = "import torch, simfast; from simfast import ops; print(ops.available()); "
CALL = "ops.connected_components(torch.zeros(1, 2, 2, dtype=torch.uint8))"


def python(code: str, *folders: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True, timeout=120)


def copy_without_library(to: Path) -> Path:
    shutil.copytree(ROOT / "simfast", to / "simfast", ignore=shutil.ignore_patterns("*.so", "__pycache__", "streets"))
    return to


def test_the_library_is_built_and_fits():
    assert ops.available(), ops.library.error


@pytest.mark.parametrize("kind", ["missing", "not a library", "another version"])
def test_one_sentence_tells_what_to_do(kind, tmp_path):
    copy = copy_without_library(tmp_path)
    if kind == "not a library":
        (copy / "simfast" / "_simfast.so").write_bytes(b"\0" * 100)
    if kind == "another version":
        shutil.copy(LIBRARY, copy / "simfast")
        (copy / "simfast" / "__init__.py").write_text('__version__ = "0.0.9"\n')
    used = python(USE + CALL, copy)
    assert used.stdout.strip() == "False", used.stderr  # importing simfast and simfast.ops works
    last = used.stderr.strip().splitlines()[-1]
    assert re.match(r"RuntimeError: simfast.ops: the native library .*`pip install --no-build-isolation -e \.`$", last)


def test_only_the_binding_knows_torch_and_no_header_of_kernels_knows_cuda():
    for path in (ROOT / "csrc").rglob("*.*"):
        text = path.read_text()
        assert "binding" in path.parts or not re.search(r"#include [<\"](torch|ATen|c10)/", text), path
    assert "cuda" not in re.findall(r"#include.*", (ROOT / "csrc" / "kernels.h").read_text())


def test_the_library_names_no_folder_of_the_machine_that_built_it():
    content = LIBRARY.read_bytes()
    assert str(ROOT).encode() not in content
    assert str(Path(sys.prefix)).encode() not in content


def test_the_library_needs_no_cuda_to_load():
    needed = subprocess.run(["ldd", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed
    assert "cuda" not in needed


@pytest.fixture
def find_nvcc(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))["find_nvcc"]


@pytest.mark.parametrize(("wanted", "found"), [("auto", None), ("0", None)])
def test_without_nvcc_the_cpu_half_is_built(wanted, found, find_nvcc, monkeypatch):
    monkeypatch.setenv("SIMFAST_CUDA", wanted)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert find_nvcc() is found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("1", "SIMFAST_CUDA: 1 needs nvcc"), ("yes", "SIMFAST_CUDA: must be auto, 1 or 0, got 'yes'")],
)
def test_what_was_asked_for_is_built_or_refused(wanted, message, find_nvcc, monkeypatch):
    monkeypatch.setenv("SIMFAST_CUDA", wanted)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=message):
        find_nvcc()


@pytest.fixture
def asked_of_cmake(monkeypatch, tmp_path):
    """Runs setup.py's build in an environment: the options that CMake is given, and the folder it builds in."""

    def run(**environment):
        commands, made = [], {}
        for name in ("CUDA", "CUDA_FLAGS", "CUDA_RUNTIME", "CUDA_ARCHITECTURES"):
            monkeypatch.delenv(f"SIMFAST_{name}", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(f"SIMFAST_{name}", value)
        monkeypatch.setattr(setuptools, "setup", lambda **given: made.update(given))
        build = runpy.run_path(str(ROOT / "setup.py"))["CMakeBuild"](setuptools.Distribution({"version": "1"}))
        build.build_lib = str(tmp_path)
        monkeypatch.setattr(shutil, "which", lambda name, **_: f"/bin/{name}")
        monkeypatch.setattr(shutil, "copyfile", lambda source, target: Path(target).touch())
        monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
        build.build_extension(made["ext_modules"][0])
        configure = commands[0]
        options = dict(word[2:].split("=", 1) for word in configure if str(word).startswith("-D"))
        return options, Path(configure[configure.index("-B") + 1]).name

    return run


def test_flags_and_runtime_reach_cmake_each_in_a_folder_of_its_own(asked_of_cmake):
    options, plain = asked_of_cmake()
    assert (options["SIMFAST_CUDA_RUNTIME"], "CMAKE_CUDA_FLAGS" in options) == ("static", False)
    folders = {plain}
    for flags in ("-DSIMFAST_MEAN_SLOTS=2", "-DSIMFAST_MEAN_SLOTS=6 -lineinfo"):
        options, folder = asked_of_cmake(CUDA_FLAGS=flags)
        assert (options["CMAKE_CUDA_FLAGS"], options["SIMFAST_CUDA"]) == (flags, "ON")
        folders.add(folder)
    options, folder = asked_of_cmake(CUDA_RUNTIME="shared", CUDA_ARCHITECTURES="90-real")
    assert (options["SIMFAST_CUDA_RUNTIME"], options["CMAKE_CUDA_ARCHITECTURES"]) == ("shared", "90-real")
    assert len(folders | {folder}) == 4
    options, folder = asked_of_cmake(CUDA="0")
    assert (options["SIMFAST_CUDA"], folder) == ("OFF", "native-cpu")
    assert not {"CMAKE_CUDA_FLAGS", "SIMFAST_CUDA_RUNTIME", "CMAKE_CUDA_COMPILER"} & set(options)
    with pytest.raises(SystemExit, match="SIMFAST_CUDA_RUNTIME: must be static or shared, got 'dynamic'"):
        asked_of_cmake(CUDA_RUNTIME="dynamic")


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_cpu_kernels_run_clean_under(sanitizer, tmp_path):
    sources = [ROOT / "tests/sanitize/kernels.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    flags = ["-std=c++20", "-O0", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-DSIMFAST_PLAIN"]
    sanitize = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = tmp_path / "kernels"
    subprocess.run(["g++", *flags, *sanitize, f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    if (
        "unexpected memory mapping" in run.stderr
    ):  # the kernel randomises addresses more than the thread sanitizer bears
        run = subprocess.run(["setarch", "-R", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "all CPU kernels ran\n"
