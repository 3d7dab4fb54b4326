"""Builds the native library simfast/_simfast.so with CMake and ninja, or leaves it out: simfast then runs in PyTorch.

Environment, read at build time:
    SIMFAST_NATIVE: auto (default: built on Linux where a C++ compiler, cmake and ninja are found; what is found but
        does not compile is an error), 1 (an error where something is missing, tried on other systems too) or 0.
    SIMFAST_CUDA: auto (default: CUDA kernels where nvcc is found), 1 (an error without nvcc) or 0.
    SIMFAST_CUDA_ARCHITECTURES: as CMake's CMAKE_CUDA_ARCHITECTURES, e.g. "90"; default 80, 86, 89, 90, 100 and 120.
    SIMFAST_CUDA_RUNTIME: static (default), or shared: what the stub GPU of tests/stub stands in for.
    SIMFAST_CUDA_FLAGS: more flags for nvcc, e.g. "-DNAME=2" for a variant of a kernel, built in a folder of its own.
    CUDA_HOME: where to look for nvcc before the PATH and /usr/local/cuda.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
NAME = "simfast._simfast"
# Machine code for each; for what comes after, the newest one's PTX as well.
ARCHITECTURES = "80-real;86-real;89-real;90-real;100-real;120"
# cmake and ninja may be packages beside this Python, whose folder need not be on the PATH.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def why_not_native() -> str | None:
    """Why the native library is left out; None where it is to be built.

    Raises:
        SystemExit: SIMFAST_NATIVE is not one of its values, or 1 where something is missing.
    """
    wanted = os.environ.get("SIMFAST_NATIVE", "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"SIMFAST_NATIVE: must be auto, 1 or 0, got {wanted!r}")
    insists = "SIMFAST_NATIVE" if wanted == "1" else "SIMFAST_CUDA" if os.environ.get("SIMFAST_CUDA") == "1" else None
    if wanted == "0":
        if insists:
            raise SystemExit("SIMFAST_CUDA: 1 needs SIMFAST_NATIVE to be auto or 1, got 0")
        return "SIMFAST_NATIVE is 0"
    if not insists and not sys.platform.startswith("linux"):
        return f"it is built on Linux, this is {sys.platform}"
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    missing = [] if any(shutil.which(name, path=PATH) for name in compilers) else [f"a C++ compiler ({compilers[0]})"]
    missing += [name for name in ("cmake", "ninja") if shutil.which(name, path=PATH) is None]
    if not missing:
        return None
    if insists:
        raise SystemExit(f"{insists}: 1 needs {' and '.join(missing)}, not found on the PATH")
    return f"{' and '.join(missing)} not found on the PATH"


def find_nvcc() -> str | None:
    """nvcc to build with, or None if SIMFAST_CUDA is 0, or auto and there is none."""
    wanted = os.environ.get("SIMFAST_CUDA", "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"SIMFAST_CUDA: must be auto, 1 or 0, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = (
        (shutil.which("nvcc", path=f"{home}/bin") if home else None)
        or shutil.which("nvcc")
        or shutil.which("nvcc", path="/usr/local/cuda/bin")
    )
    if wanted == "1" and nvcc is None:
        raise SystemExit("SIMFAST_CUDA: 1 needs nvcc, got none in CUDA_HOME, the PATH or /usr/local/cuda")
    return nvcc


class CMakeBuild(build_ext):
    """One library for every Python: its name carries no ABI tag."""

    def run(self) -> None:
        if not self.extensions:  # this command alone was asked for: doing nothing is no answer
            raise SystemExit(f"simfast: the native library cannot be built: {WHY_NOT}")
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        torch = find_spec("torch")
        if torch is None:
            raise SystemExit(
                "torch: must be installed before simfast is built with --no-build-isolation "
                "(SIMFAST_NATIVE=0 leaves the native library out)"
            )
        nvcc, flags = find_nvcc(), os.environ.get("SIMFAST_CUDA_FLAGS", "")
        runtime = os.environ.get("SIMFAST_CUDA_RUNTIME") or "static"
        if runtime not in ("static", "shared"):
            raise SystemExit(f"SIMFAST_CUDA_RUNTIME: must be static or shared, got {runtime!r}")
        kind = "cpu" if nvcc is None else "cuda" if runtime == "static" else "cuda-shared"
        if flags:
            kind += "-" + hashlib.sha256(flags.encode()).hexdigest()[:8]
        build = ROOT / "build" / f"native-{kind}"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "SIMFAST_TORCH": Path(torch.origin).parent,
            "SIMFAST_VERSION": self.distribution.get_version(),
            "SIMFAST_CUDA": "ON" if nvcc else "OFF",
        }
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options |= {"CMAKE_CUDA_FLAGS": flags} if flags else {}
            options["CMAKE_CUDA_ARCHITECTURES"] = os.environ.get("SIMFAST_CUDA_ARCHITECTURES") or ARCHITECTURES
            options["SIMFAST_CUDA_RUNTIME"] = runtime
        defines = [f"-D{key}={value}" for key, value in options.items()]
        environment = os.environ | {"PATH": PATH}
        cmake = shutil.which("cmake", path=PATH) or "cmake"
        try:
            subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True, env=environment)
            subprocess.run([cmake, "--build", build], check=True, env=environment)
        except subprocess.CalledProcessError:
            raise SystemExit(
                "simfast: the native library did not compile (above); SIMFAST_NATIVE=0 installs without it"
            ) from None

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".so.new")
        shutil.copyfile(build / "_simfast.so", fresh)
        os.replace(fresh, target)  # a running process keeps the library it has mapped


class Modules(build_py):
    """Says with the modules that the library is not among them: building it is no step of such a build."""

    def run(self) -> None:
        super().run()
        if WHY_NOT:
            rule = "*" * 79
            print(
                f"{rule}\nsimfast: the native library is NOT built: {WHY_NOT}.\nThe package works without it, slower, "
                f"on its reference in PyTorch; SIMFAST_NATIVE=1 insists on it.\n{rule}",
                file=sys.stderr,
            )


class Wheel(bdist_wheel):
    """Tagged for the platform alone, as there is no Python in the library; for any where there is no library."""

    def run(self) -> None:
        # setuptools packs whatever lies there, also the modules and the library of an earlier build.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


WHY_NOT = why_not_native()
setup(
    ext_modules=[] if WHY_NOT else [Extension(NAME, sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": Modules, "bdist_wheel": Wheel},
)
