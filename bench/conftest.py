"""The fixture that benchmarks report to: what is measured goes to the file that SIMFAST_BENCH_ROWS names, at once."""

import os
from pathlib import Path

import pytest

from bench.rows import Case


def pytest_configure(config) -> None:
    config.pluginmanager.unregister(name="benchmark")  # pytest-benchmark's fixture has the same name


@pytest.fixture
def benchmark(request):
    path = os.environ.get("SIMFAST_BENCH_ROWS")
    name = request.node.nodeid.removeprefix("bench/")
    case = Case(Path(path) if path else None, os.environ.get("SIMFAST_BENCH_PART", "bench"), name)
    yield case
    case.close()
