"""Parts that are other programs: tests, the trainer, profilers, sanitizers, benchmarks against peers.

python -m bench.gpu.programs --out OUT --what tests-step
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench import rows
from bench.gpu.part import Part, arguments
from bench.timing import needs

ROOT = Path(__file__).parents[2]
# The tests that decide come first: a captured step against an eager one, then the ops, then everything else.
STEP_TESTS = (
    *("tests/training/test_step_modes.py", "tests/matching/test_matching_fused.py"),
    *("tests/training/test_fused_maps.py", "tests/training/test_fused_head_and_weights.py"),
)
OPS = (
    *("components", "regions", "segment_mean", "nearest", "matching_ops"),
    *("batch_norm_act", "conv1x1_statistics", "sum_of_taps", "upsampled_ops"),
)
OPS_TESTS = (*(f"tests/ops/test_{op}.py" for op in OPS), "tests/models/test_upsampled.py")
# Benches, and which of their cases.
PEERS = dict.fromkeys(("components", "regions", "segment_mean", "matching"), "bench") | {
    "nearest": "not tiles",
    "data": "paper",
}
TRAINING_NEEDS = ("pydantic", "tyro", "yaml", "tqdm", "PIL", "cv2", "matplotlib", "tensorboard", "tabulate")
COUNTERS = (
    "gpu__time_duration.sum",
    "sm__inst_executed.sum",
    "sm__inst_executed.avg.per_cycle_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l1tex__t_sector_hit_rate.pct",
    "lts__t_sector_hit_rate.pct",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)


def run(part: Part, command: list[str], **environment: str) -> int:
    """A program's exit status; what it prints goes to the log."""
    print("$ " + " ".join(command), flush=True)
    measured = {"SIMFAST_BENCH_ROWS": str(part.path.resolve()), "SIMFAST_BENCH_PART": part.name}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **measured, **environment}).returncode


def tests(part: Part, files: tuple[str, ...], select: str) -> None:
    if part.device == "cpu":
        select = "no_such_test"  # only that they can be collected
    files = tuple(f for f in files if (ROOT / f).exists())
    command = [sys.executable, "-m", "pytest", *files, "-m", "gpu", "-p", "bench.gpu.outcomes"]
    command += ["-k", select] if select else []
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=short", "-rfE"]
    status = run(part, command, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    found = [row for row in rows.read(part.path) if row["part"] == part.name and "test" in row]
    counts = {outcome: sum(row["test"] == outcome for row in found) for outcome in ("passed", "failed", "skipped")}
    part.row(part.name, tests=counts, status=status, **({} if part.device == "cuda" else {"skipped": "no GPU"}))
    if status not in (0, 5):  # 5: none was selected
        raise RuntimeError(f"{counts['failed']} tests failed, status {status}")


def other_tests() -> tuple[str, ...]:
    """Every other file with a test that needs a GPU: one that takes its marks from simfast.testing."""
    marks = re.compile(r"from simfast\.testing import [^)]*?\b(needs_gpu|DEVICES|GPU)\b")
    files = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "tests").rglob("test_*.py") if marks.search(f.read_text()))
    return tuple(f for f in files if f not in STEP_TESTS + OPS_TESTS)


def train(part: Part) -> None:
    """train.py as a user calls it: 200 steps on the embedded pictures."""
    missing = [reason for name in TRAINING_NEEDS if (reason := needs(name))]
    if missing:
        part.row(part.name, skipped="; ".join(missing))
        return
    out, steps, preset = part.scratch / "run", 200, "streets-gpu"
    if part.device == "cpu":
        steps, preset = 2, "streets"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "train.py", "--preset", preset, "--steps", str(steps), "--eval-every", str(steps)]
    command += ["--log-every", str(max(steps // 4, 1)), "--device", part.device, "--out", str(out)]
    began = time.monotonic()
    status = run(part, command)
    if status:
        raise RuntimeError(f"train.py ended with status {status}")
    result = json.loads((out / "result.json").read_text())
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    part.row(
        f"train.py, {preset}, {steps} steps",
        passed=True,
        seconds=time.monotonic() - began,
        seconds_of_the_run=result.get("seconds"),
        last_log=next((row for row in reversed(log) if row["kind"] == "train"), None),
        **({} if part.device == "cuda" else {"skipped": "no GPU"}),
    )


def sanitize(part: Part, tool: str) -> None:
    """compute-sanitizer over every op on small shapes. racecheck also names races that are meant: it is no failure."""
    program = [sys.executable, "tests/sanitize/gpu_ops.py"]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if part.device == "cpu":
        status = run(part, program)
        part.row(tool, skipped="no GPU", passed=status == 0)
        return
    if sanitizer is None:
        part.row(tool, skipped="no compute-sanitizer")
        return
    log = part.scratch / f"{tool}.txt"
    options = ["--tool", tool, "--error-exitcode", "86", "--print-limit", "20", "--log-file", str(log)]
    # torch's allocator would hide what is read or written beyond a tensor.
    status = run(part, [sanitizer, *options, *program], PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    text = log.read_text(errors="replace") if log.exists() else ""
    print(text[-6000:], flush=True)
    last = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
    part.row(tool, passed=status == 0, status=status, summary=last[-1] if last else "no summary")
    if status and tool != "racecheck":
        raise RuntimeError(f"{tool}: status {status}, {last[-1] if last else 'no summary'}")


def counters(part: Part) -> None:
    """Instructions, issue rate, cache hits and memory rate of every kernel of the ops, as ncu counts them."""
    program = [sys.executable, "-m", "bench.gpu.kernels"]
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if part.device == "cpu" or ncu is None:
        status = run(part, program)
        part.row("counters", skipped="no GPU" if part.device == "cpu" else "no ncu", passed=status == 0)
        return
    log = part.scratch / "counters.csv"
    ours = "regex:components|regions|segment_mean|nearest_l1|ring_write"
    options = ["--clock-control", "none", "--target-processes", "all", "-k", ours, "--launch-count", "24"]
    options += ["--csv", "--page", "raw", "--metrics", ",".join(COUNTERS), "--log-file", str(log)]
    status = run(part, [ncu, *options, *program])
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        raise RuntimeError(f"ncu: status {status}, {' '.join(lines[-3:])[:300]}")
    for row in csv.DictReader(lines[header:]):
        if row["ID"]:  # the line below the names holds the units
            part.row(f"counters {row['Kernel Name'][:60]}", counters={name: row.get(name) for name in COUNTERS})


def peers(part: Part, name: str) -> None:
    """One of the repository's own benches, ours beside whatever else is installed."""
    if part.device == "cpu" and name != "regions":
        part.row(name, skipped="no GPU")
        return
    select = ["-m", "gpu", "-k", PEERS[name]] if part.device == "cuda" else ["-k", "cpu and smooth and not images"]
    command = [sys.executable, "-m", "pytest", f"bench/{name}.py", "-o", "python_functions=bench_*", *select]
    status = run(part, [*command, "-p", "no:cacheprovider", "--tb=short"], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    if status not in (0, 5):
        raise RuntimeError(f"bench/{name}.py: status {status}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--what", required=True)
    asked = parser.parse_args()
    part = Part(asked.what, asked)
    programs = {
        "tests-step": partial(tests, part, STEP_TESTS, "not compile"),
        "tests-ops": partial(tests, part, OPS_TESTS, ""),
        "tests-rest": partial(tests, part, other_tests(), "not compile"),
        "tests-compile": partial(tests, part, STEP_TESTS[:1], "compile"),
        "train": partial(train, part),
        "counters": partial(counters, part),
        "memcheck": partial(sanitize, part, "memcheck"),
        "racecheck": partial(sanitize, part, "racecheck"),
        **{f"peers-{name}": partial(peers, part, name) for name in PEERS},
    }
    if asked.what not in programs:
        parser.error(f"--what: must be one of {', '.join(programs)}, got {asked.what}")
    part.each({asked.what: programs[asked.what]})
    part.end()


if __name__ == "__main__":
    main()
