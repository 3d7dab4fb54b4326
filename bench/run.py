"""Runs the benchmarks of what is built and writes one JSON; builds nothing.

    python -m bench.run --out bench/results [--only components] [--select cpu] [--note "other programs were running"]

The file holds the device, its driver, versions, the commit, the machine's load before and after, and per case the
median of every contender, those that are missing named. `python -m bench.table FILE...` makes a table and a plot of
such files.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from simfast.environment import cpu_name, git

ROOT = Path(__file__).parents[1]
BENCHES = ("components", "regions", "segment_mean", "nearest", "matching", "step", "data")
PACKAGES = (
    "torch", "numpy", "scikit-image", "connected-components-3d", "scipy", "opencv-python-headless", "cupy-cuda13x",
    "cucim-cu13", "triton", "pykeops", "faiss-gpu-cu12", "cuvs-cu13", "pytest-benchmark",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    parser.add_argument("--only", action="append", choices=BENCHES, help="run this one (may be repeated); default: all")
    parser.add_argument("--select", default="", help="of these only the cases that this expression names (pytest -k)")
    parser.add_argument("--note", default="", help="what a reader should know about this run")
    arguments = parser.parse_args()

    load = [os.getloadavg()[0]]
    files = [str(ROOT / "bench" / f"{name}.py") for name in arguments.only or BENCHES]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", *files, "-o", "python_functions=bench_*", f"--benchmark-json={raw}"]
        command += ["-k", arguments.select] if arguments.select else []
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
        if not raw.exists() or not raw.read_text().strip():
            raise SystemExit(status or 1)
        cases = [
            {"name": case["fullname"].removeprefix("bench/"), **case["extra_info"]}
            for case in json.loads(raw.read_text())["benchmarks"]
        ]
    load.append(os.getloadavg()[0])
    result = {**machine(), "load_before_and_after": load, "note": arguments.note, "cases": cases}

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{slug(result['gpu'] or result['cpu'])}-{result['commit'][:10]}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(fresh, path)
    print(path)
    raise SystemExit(status)  # a red case has no time, and the run says so


def machine() -> dict:
    """What a reader needs to repeat the run; no name of a host and no path."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git("rev-parse", "HEAD") or "unknown",
        "clean": not git("status", "--porcelain", "--untracked-files=no"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "driver": nvidia_driver() if gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def nvidia_driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
