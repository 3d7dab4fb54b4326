"""Gathers what a machine with a GPU may lack into one folder that git ignores: wheels, and libraries built beforehand.

    python -m bench.gpu.bundle [--before REVISION] [--no-wheels] [--no-libraries]

The folder then holds
    wheels/                       of Python 3.12 on Linux; the driver unpacks those whose package is not installed
    _simfast.so                   built for compute capability 9.0 alone; used where simfast/_simfast.so is missing
    _simfast-VARIANT.so           one for each of VARIANTS, measured beside it
    _simfast-before.so            from the sources of REVISION, which must have the same ops
    commit.json                   what all of it was made from, for a machine to which .git does not travel
Its size is printed; a limit on what may be carried is the caller's business.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gpu.variants import BUNDLE, ROOT, VARIANTS
from simfast.runtime.environment import git

ARCHITECTURE = "90"


# With everything they need (small, or pure Python) ...
WITH_NEEDS = ("pydantic", "tyro", "tqdm", "tabulate", "hypothesis", "pyyaml", "pillow")
# ... and without: what these need is there, or is too large to carry.
ALONE = (
    "connected-components-3d",
    "cityscapesscripts==2.3.0",
    "pyquaternion",
    "torchmetrics",
    "lightning-utilities",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=BUNDLE)
    parser.add_argument(
        "--before", metavar="REVISION", help="also build the sources of this commit, to be measured too"
    )
    parser.add_argument("--no-wheels", action="store_true", help="leave the wheels as they are")
    parser.add_argument("--no-libraries", action="store_true", help="leave the libraries as they are")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.no_wheels:
        wheels(asked.folder / "wheels")
    if not asked.no_libraries:
        library(ROOT, asked.folder / "_simfast.so", "")
        for old in asked.folder.glob("_simfast-*.so"):
            old.unlink()
        for name, variant in VARIANTS.items():
            library(ROOT, asked.folder / f"_simfast-{name}.so", variant.flags)
        if asked.before:
            library_of(asked.before, asked.folder / "_simfast-before.so")
        all_differ(sorted(asked.folder.glob("_simfast*.so")))
    state = {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain", "--untracked-files=no")}
    (asked.folder / "commit.json").write_text(json.dumps(state) + "\n")
    files = sorted(f for f in asked.folder.rglob("*") if f.is_file())
    for file in files:
        print(f"{file.stat().st_size / 2**20:7.2f} MiB  {file.relative_to(asked.folder)}")
    print(f"{sum(f.stat().st_size for f in files) / 2**20:7.2f} MiB in all")


def wheels(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", "3.12", "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *WITH_NEEDS], check=True)
    subprocess.run([*command, "--no-deps", *ALONE], check=True)


def library_of(revision: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        library(Path(folder), target, "")


def library(source: Path, target: Path, flags: str) -> None:
    """The library of the sources in a folder, as setup.py builds it, without what names the build: the same code is the
    same bytes."""
    environment = {"SIMFAST_CUDA": "1", "SIMFAST_CUDA_ARCHITECTURES": ARCHITECTURE, "SIMFAST_CUDA_FLAGS": flags}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", folder]
        subprocess.run(command, cwd=source, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
        strip = ["strip", "--strip-all", "--remove-section=.note.gnu.build-id", "--remove-section=.comment"]
        subprocess.run([*strip, "-o", target, Path(folder, "simfast", "_simfast.so")], check=True)


def all_differ(libraries: list[Path]) -> None:
    """Of two with the same bytes one has flags that change nothing: what would be measured is noise.

    Raises:
        SystemExit: naming them.
    """
    seen: dict[bytes, Path] = {}
    for file in libraries:
        digest = hashlib.sha256(file.read_bytes()).digest()
        if digest in seen:
            raise SystemExit(f"bundle: {seen[digest].name} and {file.name} are the same library")
        seen[digest] = file


if __name__ == "__main__":
    main()
