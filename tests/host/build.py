"""Builds the CUDA kernels for the CPU: `load()` compiles their own sources with g++ and imports the module."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = ("components", "regions", "regions_small", "segment_mean", "segment_mean_backward")
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wno-unknown-pragmas")


def compiler() -> str:
    """The C++ compiler's path. These tests cannot run without one, so its absence is an error, not a skip."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise RuntimeError("tests/host: no C++ compiler, install g++ or set CXX")
    return found


def build(csrc: Path = CSRC) -> Path:
    """Path of the built module. Objects are kept in the temporary folder under a hash of all that went into them."""
    headers = sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*.cuh"), *HERE.glob("*.h")])
    common = hashlib.sha256(" ".join(FLAGS).encode())
    for header in headers:
        common.update(header.read_bytes())
    cache = Path(tempfile.gettempdir()) / f"simfast-host-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)

    def compile_one(source: Path) -> Path:
        digest = common.copy()
        digest.update(source.read_bytes())
        target = cache / f"{source.stem}-{digest.hexdigest()[:20]}.o"
        if not target.exists():
            includes = [csrc, HERE, pybind11.get_include(), sysconfig.get_paths()["include"]]
            options = [*FLAGS, *(f"-I{folder}" for folder in includes), "-x", "c++", "-c", str(source)]
            _run([compiler(), *options], target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*(csrc / "cuda" / f"{source}.cu" for source in SOURCES), HERE / "module.cpp"]))
    name = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:20]
    library = cache / f"simfast_host-{name}.so"
    if not library.exists():
        _run([compiler(), "-shared", *map(str, objects)], library)
    return library


def load(library: Path):
    """The module built at `library`."""
    spec = importlib.util.spec_from_file_location("simfast_host", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: list[str], target: Path) -> None:
    """Runs `command -o target`, so that nobody ever sees a half-written target."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    os.replace(partial, target)
