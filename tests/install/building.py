"""Builds what is distributed, and runs commands."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A GPU's kernels take minutes to compile, and are packed as the others.
BUILD = {**os.environ, "SIMFAST_CUDA": "0", "SIMFAST_NATIVE": "1", "PYTHONPATH": ""}


def run(*command, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def build(source: Path, out: Path, *what: str, **environment: str) -> list[Path]:
    """What `python -m build` makes of a source tree, in the order of the names."""
    run(sys.executable, "-m", "build", "--no-isolation", *what, "-o", out, cwd=source, env={**BUILD, **environment})
    return sorted(out.iterdir())
