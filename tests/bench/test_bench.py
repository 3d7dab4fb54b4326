"""The rules of the benchmarks: right before fast, on disk as soon as measured, a missing peer is named, no gap of the
host in a device's time; and of the run on a machine with a GPU: parts by worth, limits that cost one part alone, a
table.
"""

import gc
import json
import re
import signal
import subprocess
import sys
import time
import warnings
import weakref
import zipfile

import pytest
import torch

from bench import rows, step_measures, table, timing
from bench.gpu import __main__ as driver
from bench.gpu import bundle, collect, programs
from bench.gpu.table import SHOWN
from bench.gpu.table import table as gpu_table
from bench.gpu.variants import VARIANTS
from bench.rows import Case
from bench.timing import Contender, compare
from simfast.testing import needs_gpu

# ----------------------------------------------------------------------------------------------------------------------
# Comparisons
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def report(monkeypatch):
    """What compare() is given, reporting to no file."""
    monkeypatch.setattr(timing, "copy_rate", lambda device: 1e9)
    return Case(None, "bench", "case")


def says(value, calls):
    def run():
        calls.append(value)
        return value

    return run


def must_be(expected):
    def check(found):
        assert found == expected

    return check


def test_no_time_for_a_wrong_result(report):
    calls = []
    contenders = [Contender("right", says(1, calls), must_be(1)), Contender("wrong", says(2, calls), must_be(1))]
    with pytest.raises(AssertionError):
        compare(report, contenders, "cpu", bytes_moved=10)
    assert calls == [1, 2]  # checked once each, timed never
    assert report.extra_info == {}


def test_a_rehearsal_says_what_is_wrong_and_goes_on(report, monkeypatch):
    monkeypatch.setenv(timing.REHEARSAL, "1")
    compare(report, [Contender("wrong", says(2, []), must_be(1))], "cpu", bytes_moved=10, rounds=3)
    (row,) = report.extra_info["contenders"]
    assert row["wrong"]
    assert row["samples"] == 3


def test_contenders_take_turns_and_a_missing_one_is_named(report):
    calls = []
    contenders = [Contender("a", says(1, calls)), Contender("b", says(2, calls)), Contender("c", missing="no module c")]
    compare(report, contenders, "cpu", bytes_moved=10, rounds=4)
    assert calls == [1, 2] + [1, 1, 2, 2] * 4  # check, then rounds with a warm-up each
    found = report.extra_info["contenders"]
    assert [row["name"] for row in found] == ["a", "b", "c"]
    assert found[0]["times_the_first"] == 1
    assert found[0]["samples"] == found[1]["samples"] == 4
    assert found[2] == {"name": "c", "missing": "no module c"}


def test_a_result_becomes_a_table_and_a_plot(report, tmp_path, monkeypatch, capsys):
    compare(report, [Contender("ours", list), Contender("theirs", missing="not installed")], "cpu", 10, rounds=3)
    case = {"name": "components.py::bench[x]", **report.extra_info}
    result = {
        **dict.fromkeys(("gpu", "driver")), "cpu": "a CPU", "cores": 2, "commit": "0123456789ab", "date": "today",
        "versions": {"torch": "2.13"}, "load_before_and_after": [0.1, 0.2], "note": "", "cases": [case],
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr("sys.argv", ["table", str(tmp_path / "result.json"), "--plot", str(tmp_path / "plot.png")])
    table.main()
    printed = capsys.readouterr().out
    assert "a CPU, 2 cores; torch 2.13; commit 0123456789" in printed
    assert "missing: not installed" in printed
    assert (tmp_path / "plot.png").stat().st_size > 1000


# ----------------------------------------------------------------------------------------------------------------------
# Rows
# ----------------------------------------------------------------------------------------------------------------------


def test_what_was_measured_survives_the_end_of_its_case(tmp_path):
    path = tmp_path / "rows.jsonl"
    case = Case(path, "step", "batch 1")
    case.row("simfast, graph", device_ms=2.0)
    case.row("plain loop, eager fp32", device_ms=16.0)
    with open(path, "a") as file:
        file.write('{"part": "step", "case": "batch 1", "cont')  # killed in the middle of a write
    (found,) = rows.cases(rows.read(path))
    assert found["name"] == "batch 1"
    assert [c["times_the_first"] for c in found["contenders"]] == [1, 8]
    assert found["contenders"][0]["speed_over_plain"] == 8


def test_a_bench_that_is_killed_leaves_its_finished_cases(tmp_path):
    bench = tmp_path / "slow.py"
    bench.write_text(
        "import time\n"
        "def bench_quick(benchmark):\n    benchmark.extra_info.update(contenders=[{'name': 'a', 'device_ms': 1.0}])\n"
        "def bench_slow(benchmark):\n    time.sleep(600)\n"
    )
    measured = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(bench),
        "-p",
        "bench.conftest",
        "-p",
        "no:benchmark",
        "-o",
        "python_functions=bench_*",
    ]
    environment = {**driver.os.environ, "SIMFAST_BENCH_ROWS": str(measured), "PYTHONPATH": str(driver.ROOT)}
    with subprocess.Popen(command, env=environment, cwd=driver.ROOT, stdout=subprocess.DEVNULL) as process:
        for _ in range(600):
            if measured.exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    (found,) = rows.cases(rows.read(measured))
    assert found["contenders"] == [{"name": "a", "device_ms": 1.0, "times_the_first": 1.0}]


# ----------------------------------------------------------------------------------------------------------------------
# Measures of a step
# ----------------------------------------------------------------------------------------------------------------------


def test_forgotten_is_also_what_refers_to_itself():
    class Cycle:
        pass

    gc.disable()
    try:
        one = Cycle()
        one.itself, alive = one, weakref.ref(one)
        del one
        step_measures.forget("cpu")
        assert alive() is None
    finally:
        gc.enable()


def test_a_host_read_is_counted_and_the_warning_that_the_mode_is_a_prototype_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: mode == "warn" and warnings.warn(
        "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations",
        stacklevel=1,
    ))  # fmt: skip
    assert step_measures.host_reads(lambda step: None, "cuda", eager=True) == 0
    reads = lambda step: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)  # noqa: E731
    assert step_measures.host_reads(reads, "cuda", eager=True) == 1


@needs_gpu
def test_a_gap_of_the_host_is_no_time_of_the_device():
    x = torch.ones(1 << 16, device="cuda")

    def run():
        x.add_(1)
        time.sleep(0.005)
        return x.mul_(1)

    delayed = timing.timer(run, check=None)
    seconds = min(delayed.sample()[0] for _ in range(5))
    assert seconds < 1e-3
    assert delayed.how == "events behind a delay"


@needs_gpu
def test_a_graph_is_timed_only_if_it_does_the_work():
    x = torch.rand(1 << 26, device="cuda")
    expected = x + 1
    kept = x + 1

    def check(found):
        assert torch.equal(found, expected)

    honest, idle = timing.timer(lambda: x + 1, check), timing.timer(lambda: kept, check)
    assert honest.how.startswith("a graph of")
    rate = 2 * x.nbytes / min(honest.sample()[0] for _ in range(5))
    assert 0.7 < rate / timing.copy_rate("cuda") < 1.3
    assert "no graph" in idle.how


# ----------------------------------------------------------------------------------------------------------------------
# The run on a machine with a GPU
# ----------------------------------------------------------------------------------------------------------------------

PART = """
import sys, time
from pathlib import Path
from bench import rows
out = Path(sys.argv[sys.argv.index("--out") + 1]) / "results.jsonl"
rows.append(out, {"part": sys.argv[1], "case": "work", "contender": "simfast", "device_ms": 1.0})
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """Runs the driver on parts (name, seconds, exit status, limit, least); exit status and rows."""
    (tmp_path / "one_part.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(parts, *arguments):
        made = [
            driver.Part(name, ("one_part", name, str(seconds), str(status)), 1, limit, least)
            for name, seconds, status, limit, least in parts
        ]
        monkeypatch.setattr(driver, "PARTS", made)
        monkeypatch.setattr("sys.argv", ["bench.gpu", str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as end:
            driver.main()
        return end.value.code, rows.read(tmp_path / "out" / "results.jsonl")

    return run


def outcomes(found):
    return {row["case"]: row["outcome"] for row in found if row["part"] == "run"}


def test_a_part_that_fails_or_is_ended_costs_itself_alone_and_loses_no_row(run_of, capsys):
    began = time.monotonic()
    code, found = run_of([("hangs", 600, 0, 2, 0), ("fails", 0, 3, 30, 0), ("works", 0, 0, 30, 0)])
    assert time.monotonic() - began < 60
    assert code == 1
    assert outcomes(found) == {"hangs": "RED", "fails": "RED", "works": "passed"}
    assert [row["part"] for row in found if "contender" in row] == ["hangs", "fails", "works"]
    assert "hangs" in capsys.readouterr().out.split("PARTS")[1]  # the table comes last


def test_the_budget_cuts_the_tail_only(run_of):
    code, found = run_of([("first", 0, 0, 30, 0), ("large", 0, 0, 300, 200), ("last", 0, 0, 30, 0)], "--budget", "60")
    assert code == 0
    assert outcomes(found) == {"first": "passed", "large": "not begun", "last": "passed"}


def test_the_next_call_begins_where_the_last_one_was_cut(run_of):
    _, found = run_of([(name, 0, 0, 30, 0) for name in ("a", "b", "c")], "--from", "b")
    assert list(outcomes(found)) == ["b", "c"]


def test_the_first_parts_fit_into_five_minutes_and_each_into_one():
    def expected(parts):
        return sum(part.expected * (len(VARIANTS) + 1 if part.name == "variants" else 1) for part in parts)

    assert expected(driver.PARTS[:7]) <= 290 - driver.TABLE_SECONDS
    assert expected(driver.PARTS[7:13]) <= 290 - driver.TABLE_SECONDS
    assert all(part.least <= part.expected < part.limit for part in driver.PARTS)
    assert [part.name for part in driver.PARTS if part.expected >= 60] == ["step-compile"]


BREAKS = """
from bench.gpu import part
part._broken = lambda: True

def fails():
    raise RuntimeError("an illegal access")

one = part.Part("ops", part.arguments("").parse_args())
one.device = "cuda"
one.each({"a": lambda: one.row("a", passed=True), "b": fails, "c": fails, "d": lambda: one.row("d", passed=True)})
one.end()
"""


def test_an_error_that_breaks_the_device_costs_its_case_alone(tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS)
    environment = {**driver.os.environ, "PYTHONPATH": f"{driver.ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "breaks", "--out", str(tmp_path)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    found = [(row["case"], row.get("error", "passed")) for row in rows.read(tmp_path / "results.jsonl")]
    error = "RuntimeError: an illegal access"
    assert found == [("a", "passed"), ("b", error), ("c", error), ("d", "passed")]


def test_without_a_gpu_the_run_is_a_rehearsal(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", str(tmp_path), "--only", "smoke", "ops"]
    done = subprocess.run(command, cwd=driver.ROOT, capture_output=True, text=True)
    found = rows.read(tmp_path / "results.jsonl")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    assert outcomes(found) == {"smoke": "passed", "ops": "skipped"}
    assert all(row["passed"] for row in found if row["part"] == "smoke" and "passed" in row)
    assert "no GPU" in done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.txt", "results.jsonl", "table.md"]


def test_only_wheels_that_are_missing_are_unpacked(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for name in ("numpy-1.0-py3-none-any", "ours_alone-1.0-py3-none-any", f"binary_one-1-{version}-{version}-linux",
                 "other_python-1-cp27-cp27-linux"):  # fmt: skip
        with zipfile.ZipFile(wheels / f"{name}.whl", "w") as wheel:
            wheel.writestr(name.split("-")[0] + ".py", "")
    site = driver.unpacked(wheels, tmp_path / "site")
    assert sorted(file.name for file in site.iterdir()) == ["binary_one.py", "ours_alone.py"]
    assert driver.unpacked(tmp_path / "none", tmp_path / "nothing") is None


MACHINE = {"gpu": "A GPU", "driver": "1", "cpu": "a CPU", "cores": 16, "commit": "0123456789ab", "date": "today",
           "versions": {"torch": "2.11"}, "load": 0.5}  # fmt: skip


def a_run():
    yield {"part": "smoke", "case": "machine", "machine": MACHINE}
    for i in range(300):
        yield {"part": "ops", "case": f"mean {i}", "contender": "simfast", "device_ms": 0.05, "fastest_ms": 0.04,
               "floor_ms": 0.02, "warm_ms": 0.03, "call_ms": 0.01}  # fmt: skip
        yield {"part": "ops, wide", "case": f"mean {i}", "contender": "wide", "device_ms": 0.025, "fastest_ms": 0.02}
        yield {"part": "tests-ops", "case": f"test_{i}", "test": "failed", "reason": "wrong"}
    yield {"part": "step-first", "case": "step, batch 1", "contender": "simfast, graph bf16", "device_ms": 40.0,
           "fastest_ms": 39.0, "steps_per_second": 25.0, "peak_mib": 4000.0}  # fmt: skip
    yield {"part": "run", "case": "ops", "outcome": "RED", "seconds": 3.0, "why": "status 1"}


def test_every_variant_changes_what_the_kernels_name_and_no_two_libraries_are_the_same(tmp_path):
    sources = "".join(file.read_text() for file in (driver.ROOT / "csrc" / "cuda").iterdir())
    for variant in VARIANTS.values():
        for name, value in re.findall(r"-D(\w+)=(\w+)", variant.flags):
            (default,) = re.findall(rf"#ifndef {name}\n#define {name} (\w+)", sources)
            assert default != value
    files = [tmp_path / name for name in "abc"]
    for file, content in zip(files, (b"1", b"2", b"1"), strict=True):
        file.write_bytes(content)
    bundle.all_differ(files[:2])
    with pytest.raises(SystemExit, match="a and c are the same library"):
        bundle.all_differ(files)


def test_every_file_with_a_gpu_case_is_in_a_part():
    options = ["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests", "--ignore=tests/stub"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=driver.ROOT, capture_output=True, text=True, check=True
    )
    found = {line.split("::")[0].split(":")[0] for line in done.stdout.splitlines() if line.startswith("tests/")}
    assert found == {*programs.STEP_TESTS, *programs.OPS_TESTS, *programs.other_tests()}


def test_the_printed_table_is_short_and_has_every_section():
    text, whole = gpu_table(list(a_run()), SHOWN), gpu_table(list(a_run()))
    assert len(text) <= SHOWN
    for word in ("A GPU, driver 1", "PARTS", "WRONG, FAILED", "OPS, us", "VARIANTS, us", "STEPS", "..."):
        assert word in text
    assert "mean 299" in whole
    lines = [line.split() for line in text.splitlines()]
    assert ["mean", "0", "50.0", "40.0", "20.0", "2.5", "30.0", "10.0"] in lines
    assert ["mean", "0:", "wide", "25.0", "50.0", "0.50"] in lines


def test_runs_are_collected_into_a_result_file_that_the_table_reads(tmp_path, monkeypatch, capsys):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text("\n".join(map(json.dumps, a_run())))
    arguments = ["collect", str(tmp_path / "first"), str(tmp_path / "second"), "--to", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    collect.main()
    path = tmp_path / "a-gpu-0123456789.json"
    result = json.loads(path.read_text())
    assert {case["name"] for case in result["cases"]} >= {"mean 0", "step, batch 1"}
    assert result["failed_tests"][0] == {"name": "test_0", "reason": "wrong"}
    monkeypatch.setattr("sys.argv", ["table", str(path)])
    table.main()
    assert "A GPU, driver 1; torch 2.11" in capsys.readouterr().out
