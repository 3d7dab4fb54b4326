"""Builds the stub GPU for the torch of this Python, and simfast's library against the shared CUDA runtime."""

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "build" / "stub"
NATIVE = OUT / "simfast" / "_simfast.so"
# By the library that they make: torch opens the driver and NVRTC by their names.
SOURCES = {
    "libcuda.so.1": ("report", "memory", "streams", "launches", "libraries", "convolutions", "driver"),
    "libnvrtc.so.13": ("nvrtc",),
}
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-pthread")
# The libraries whose functions the stub replaces; NCCL, cuSPARSE and the rest are only named when they are called.
REPLACED = re.compile(r"(__cuda|cuda|cublas|cudnn|cufft|curand|cusparse|cusolver|cupti|nvrtc|nccl|cu)[A-Z]\w*")
# What takes the place of every function that the sources do not have.
MISSING = """
namespace stub { int unknown(const char* function); }
#define MISSING(f) extern "C" __attribute__((visibility("default"))) int f() { return stub::unknown(#f); }
"""


def build() -> list[Path]:
    """Paths of the libraries to preload, for this Python's torch; built if they are not there yet."""
    torch = Path(find_spec("torch").origin).parent
    sources = [HERE / f"{name}.cpp" for names in SOURCES.values() for name in names]
    digest = hashlib.sha256(str((torch, FLAGS)).encode())
    for file in (*sources, HERE / "stub.h", Path(__file__), torch / "version.py"):
        digest.update(file.read_bytes())
    folder = OUT / digest.hexdigest()[:16]
    if not folder.exists():
        _compile(folder, torch)
    return [folder / name for name in SOURCES]


def build_native() -> None:
    """simfast's own library at NATIVE, for one architecture: its kernels are there to be launched, and do not run."""
    how = {"SIMFAST_CUDA": "1", "SIMFAST_CUDA_RUNTIME": "shared", "SIMFAST_CUDA_ARCHITECTURES": "90-real"}
    torch = Path(find_spec("torch").origin).parent
    cache = ROOT / "build" / "native-cuda-shared" / "CMakeCache.txt"
    if cache.exists() and str(torch) not in cache.read_text():  # CMake remembers what it found in another environment
        shutil.rmtree(cache.parent)
    packages = torch.parent / "nvidia" / "cu13"
    if (packages / "bin" / "nvcc").exists():
        # NVIDIA's packages are a toolkit but for two links, which nvcc and CMake look for.
        for link, target in (("lib64", "lib"), ("lib/libcudart.so", "libcudart.so.13")):
            if not (packages / link).exists():
                (packages / link).symlink_to(target)
        how["CUDA_HOME"] = str(packages)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(OUT)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | how)


def _compile(folder: Path, torch: Path) -> None:
    work = folder.with_suffix(f".{os.getpid()}")
    work.mkdir(parents=True)
    compiler = [os.environ.get("CXX", "g++"), *FLAGS, *(f"-I{include}" for include in _includes(torch))]
    try:
        objects = {name: [work / f"{source}.o" for source in sources] for name, sources in SOURCES.items()}
        for target in itertools.chain(*objects.values()):
            _run([*compiler, "-c", HERE / f"{target.stem}.cpp", "-o", target])
        known = _symbols([*itertools.chain(*objects.values())], "--defined-only")
        wanted = _symbols([*(torch / "lib").glob("*.so")], "--dynamic", "--undefined-only")
        wanted |= _symbols(
            [torch.parent / "nvidia" / "cu13" / "lib" / "libcudart.so.13"], "--dynamic", "--defined-only"
        )
        missing = sorted(name for name in wanted - known if REPLACED.fullmatch(name))
        (work / "missing.cpp").write_text(MISSING + "".join(f"MISSING({name})\n" for name in missing))
        _run([*compiler, "-c", work / "missing.cpp", "-o", work / "missing.o"])
        objects["libcuda.so.1"].append(work / "missing.o")
        for name, parts in objects.items():
            # Whoever asks for a library of this name afterwards has it already; its symbols carry its name as version.
            (work / "version").write_text(f"{name} {{ global: *; }};\n")
            version = [f"-Wl,--version-script={work / 'version'}"] if name != "libcuda.so.1" else []
            _run([*compiler, "-shared", f"-Wl,-soname,{name}", *version, *parts, "-o", work / name, "-ldl"])
        os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _includes(torch: Path) -> list[Path]:
    """Folders of CUDA's headers: of the packages beside torch, and of nvcc's toolkit if those lack nvcc's own."""
    packages = [torch.parent / "nvidia" / name / "include" for name in ("cu13", "cudnn")]
    if (packages[0] / "crt").is_dir():
        return packages
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    toolkits = [Path(home) / "include" for home in homes if home and (Path(home) / "include" / "crt").is_dir()]
    if not toolkits:
        raise SystemExit("tests/stub: needs nvcc's headers, got none in CUDA_HOME, beside nvcc or in /usr/local/cuda")
    return [*packages, toolkits[0]]


def _symbols(files: list[Path], *options: str) -> set[str]:
    lines = _run(["nm", *options, *files]).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if len(line.split()) > 1}


def _run(command: list) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"tests/stub: {' '.join(map(str, command))[:400]}\n{done.stderr[-4000:]}")
    return done.stdout
