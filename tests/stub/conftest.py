"""Tests on the stub GPU: run by `make test-stub`, see __main__.py; in any other process there is nothing to collect."""

import sys
from pathlib import Path

import pytest
import stub_gpu

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

collect_ignore_glob = [] if stub_gpu.active() else ["test_*.py"]


@pytest.fixture(autouse=True)
def seen():
    """What the stub saw since the test began, when called; no test may ask for what the stub does not have."""
    stub_gpu.reset()
    yield stub_gpu.seen
    assert [what for what in stub_gpu.seen().violations if what.endswith("not implemented")] == []
