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
import torch

import simfast
from simfast import ops
from simfast.config import Config
from simfast.training.build import build_matching

ROOT = Path(__file__).parents[1]
LIBRARY = Path(simfast.__file__).with_name("_simfast.so")
WITHOUT_CUDA = {**os.environ, "SIMFAST_CUDA": "0"}
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
    remedy = r"`SIMFAST_NATIVE=1 pip install --force-reinstall --no-deps --no-binary simfast simfast`"
    assert re.match(rf"RuntimeError: simfast.ops: the native library .*{remedy}$", last)
    (copy / "setup.py").touch()  # a checkout
    remedy = r"`SIMFAST_NATIVE=1 pip install --no-build-isolation -e \.`"
    assert re.search(
        rf"RuntimeError: simfast.ops: the native library .*{remedy}$", python(USE + CALL, copy).stderr.strip()
    )


MATCHING = "from simfast.matching import StuffInstanceMatching; M = StuffInstanceMatching; "


def test_without_the_library_matching_says_once_that_it_uses_the_reference(tmp_path):
    copy = copy_without_library(tmp_path)
    used = python(MATCHING + "print(*(M(4, [0], [1]).ops for _ in range(3)))", copy)
    assert used.stdout.split() == ["reference"] * 3, used.stderr
    said = "StuffInstanceMatching: ops 'auto' uses the reference in PyTorch, which is slower: simfast.ops: the native"
    assert used.stderr.count("\n") == used.stderr.count(said) == 1, used.stderr
    refused = python(MATCHING + "M(4, [0], [1], ops='fused')", copy).stderr.splitlines()[-1]
    assert re.match(r"ValueError: .*ops must be one that is built, got \"fused\": .*missing; build it with `", refused)


def test_auto_is_the_reference_on_a_device_that_the_library_was_not_built_for(monkeypatch, caplog):
    monkeypatch.setattr(ops.library, "_devices", ("cpu",))  # the one that can stand for a GPU everywhere: meta
    assert build_matching(Config(), 8, torch.device("cpu")).ops == "fused"
    assert not caplog.messages
    assert build_matching(Config(), 8, torch.device("meta")).ops == "reference"
    assert len(caplog.messages) == 1
    assert "ops: auto uses the reference in PyTorch, which is slower: the native library was built with" in caplog.text
    with pytest.raises(RuntimeError, match="connected_components: the native library was built without kernels for me"):
        ops.connected_components(torch.zeros(1, 2, 2, dtype=torch.uint8, device="meta"))


def test_with_the_library_matching_says_nothing():
    used = python(MATCHING + "print(M(4, [0], [1]).ops)", ROOT)
    assert (used.stdout.strip(), used.stderr) == ("fused", "")


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
def setup_py(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("SIMFAST_NATIVE", "SIMFAST_CUDA", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def find_nvcc(setup_py):
    return setup_py["find_nvcc"]


@pytest.mark.parametrize(
    ("environment", "there", "reason"),
    [
        ({}, "c++ cmake ninja", None),
        ({"CXX": "ccache other"}, "ccache cmake ninja", None),
        ({"SIMFAST_NATIVE": "1"}, "clang++ cmake ninja", None),
        ({"SIMFAST_NATIVE": "0"}, "c++ cmake ninja", "SIMFAST_NATIVE is 0"),
        ({}, "cmake ninja", "a C++ compiler (c++) not found on the PATH"),
        ({"CXX": "other"}, "c++", "a C++ compiler (other) and cmake and ninja not found on the PATH"),
    ],
)
def test_the_library_is_left_out_for_a_reason(environment, there, reason, setup_py, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shutil, "which", lambda name, **_: name if name in there.split() else None)
    assert setup_py["why_not_native"]() == reason


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SIMFAST_NATIVE": "1"}, r"SIMFAST_NATIVE: 1 needs a C\+\+ compiler .* not found"),
        ({"SIMFAST_CUDA": "1"}, r"SIMFAST_CUDA: 1 needs a C\+\+ compiler .* not found"),
        ({"SIMFAST_CUDA": "1", "SIMFAST_NATIVE": "0"}, "SIMFAST_CUDA: 1 needs SIMFAST_NATIVE to be auto or 1, got 0"),
        ({"SIMFAST_NATIVE": "no"}, "SIMFAST_NATIVE: must be auto, 1 or 0, got 'no'"),
    ],
)
def test_a_library_that_was_insisted_on_is_not_left_out(environment, message, setup_py, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match=message):
        setup_py["why_not_native"]()


def test_what_does_not_compile_is_an_error_and_not_left_out(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "CMakeLists.txt").write_text("project(broken LANGUAGES CXX)\nmessage(FATAL_ERROR broken)\n")
    (tmp_path / "simfast").mkdir()
    command = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    built = subprocess.run(command, cwd=tmp_path, env=WITHOUT_CUDA, capture_output=True, text=True)
    assert built.returncode != 0
    assert "simfast: the native library did not compile (above); SIMFAST_NATIVE=0 installs without it" in built.stderr
    assert not [*tmp_path.rglob("*.whl")]


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
    sources = [path for folder in ("tests/sanitize", "csrc/cpu") for path in sorted((ROOT / folder).glob("*.cpp"))]
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
