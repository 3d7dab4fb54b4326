"""Runs the benchmarks of what is built and writes one JSON; builds nothing.

    python -m bench.run --out bench/results [--only components] [--select cpu] [--note "other programs were running"]

The file holds the device, its driver, versions, the commit, the machine's load before and after, and per case the
median of every contender, those that are missing named. Until it is complete, what was measured is in a file of the
same name that ends in .jsonl, case by case. `python -m bench.table FILE...` makes a table and a plot of result files.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench import rows
from simfast.runtime.environment import cpu_name, git

ROOT = Path(__file__).parents[1]
BENCHES = ("components", "regions", "segment_mean", "nearest", "matching", "step", "data")
PACKAGES = (
    "torch", "numpy", "scikit-image", "connected-components-3d", "scipy", "opencv-python-headless", "cupy-cuda13x",
    "cucim-cu13", "triton", "pykeops", "faiss-gpu-cu12", "cuvs-cu13",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    parser.add_argument("--only", action="append", choices=BENCHES, help="run this one (may be repeated); default: all")
    parser.add_argument("--select", default="", help="of these only the cases that this expression names (pytest -k)")
    parser.add_argument("--note", default="", help="what a reader should know about this run")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    found, load = machine(), [os.getloadavg()[0]]
    path = arguments.out / f"{slug(found['gpu'] or found['cpu'])}-{found['commit'][:10]}.json"
    # Beside the result until that is complete: whatever ends this run, what it measured is there.
    measured = path.with_suffix(".jsonl")
    measured.unlink(missing_ok=True)
    status = 0
    for name in arguments.only or BENCHES:  # each in a process of its own
        command = [sys.executable, "-m", "pytest", f"bench/{name}.py", "-o", "python_functions=bench_*", "-s"]
        command += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
        command += ["-k", arguments.select] if arguments.select else []
        more = {"PYTHONPATH": str(ROOT), "SIMFAST_BENCH_ROWS": str(measured.resolve()), "SIMFAST_BENCH_PART": name}
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **more}).returncode
        status = status or done * (done != 5)  # 5: no case of that name in this file
    load.append(os.getloadavg()[0])
    if not rows.cases(rows.read(measured)):
        raise SystemExit(status or 1)
    write(
        path, {**found, "load_before_and_after": load, "note": arguments.note, "cases": rows.cases(rows.read(measured))}
    )
    measured.unlink()
    print(path)
    raise SystemExit(status)  # a red case has no time, and the run says so


def write(path: Path, result: dict) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(fresh, path)


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
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
