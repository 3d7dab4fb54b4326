"""Builds the CUDA kernels for the CPU: their own sources, compiled by g++ against host_cuda.h, as a Python module."""

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
SOURCES = (
    "components",
    "matching_losses",
    "regions",
    "regions_small",
    "ring_write",
    "segment_mean",
    "segment_mean_backward",
    "select_rings",
)
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wno-unknown-pragmas")
# What a GPU would trap or silently get wrong and x86 forgives, a misaligned vector access above all, ends the process.
SANITIZE = ("-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fno-sanitize-recover")


def compiler() -> str:
    """The C++ compiler's path. These tests cannot run without one, so its absence is an error, not a skip."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise RuntimeError("tests/host: no C++ compiler, install g++ or set CXX")
    return found


def build(csrc: Path = CSRC, changed: tuple[str, ...] = SOURCES) -> Path:
    """Path of the built module, whose `changed` sources come from `csrc` and the others from the repository.

    Objects are kept in the temporary folder, under a hash of all that went into them.
    """
    jobs = [(csrc if source in changed else CSRC, f"cuda/{source}.cu") for source in SOURCES]
    objects = _compile([(folder / name, folder) for folder, name in jobs] + [(HERE / "module.cpp", CSRC)])
    return _link("simfast_host", objects)


def build_machine_cases() -> Path:
    """Path of the built module of machine_cases.cpp, which holds kernels that are wrong on purpose."""
    return _link("machine_cases", _compile([(HERE / "machine_cases.cpp", CSRC)]))


def load(library: Path):
    """The Python module built at `library`."""
    spec = importlib.util.spec_from_file_location(library.name.split("-")[0], library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"simfast-host-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _compile(sources: list[tuple[Path, Path]]) -> list[Path]:
    """Objects of (source, csrc folder to include) pairs, two at a time."""

    def compile_one(source: Path, csrc: Path) -> Path:
        digest = hashlib.sha256(" ".join(FLAGS + SANITIZE).encode())
        for file in [source, *sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*.cuh"), *HERE.glob("*.h")])]:
            digest.update(file.read_bytes())
        target = _cache() / f"{source.stem}-{digest.hexdigest()[:20]}.o"
        if not target.exists():
            includes = [csrc, HERE, pybind11.get_include(), sysconfig.get_paths()["include"]]
            options = [*FLAGS, *(f"-I{folder}" for folder in includes), "-x", "c++", "-c", str(source)]
            _run([compiler(), *options, *(SANITIZE if source.suffix == ".cu" else ())], target)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: compile_one(*pair), sources))


def _link(name: str, objects: list[Path]) -> Path:
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:20]
    library = _cache() / f"{name}-{digest}.so"
    if not library.exists():
        _run([compiler(), "-shared", *SANITIZE, *map(str, objects)], library)
    return library


def _run(command: list[str], target: Path) -> None:
    """Runs `command -o target`, so that nobody ever sees a half-written target."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    os.replace(partial, target)
