"""The fixture that benchmarks report to: what is measured goes to the file that SIMFAST_BENCH_ROWS names, at once."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from bench.device_timing import own_stream
from bench.rows import Case


def pytest_configure(config) -> None:
    config.pluginmanager.unregister(name="benchmark")  # pytest-benchmark's fixture has the same name


@pytest.fixture
def benchmark(request):
    path = os.environ.get("SIMFAST_BENCH_ROWS")
    name = request.node.nodeid.removeprefix("bench/")
    case = Case(Path(path) if path else None, os.environ.get("SIMFAST_BENCH_PART", "bench"), name)
    # A gradient is captured only on the stream of its forward pass, and never on the default one.
    with torch.cuda.stream(own_stream()) if torch.cuda.is_available() else nullcontext():
        yield case
    case.close()
