"""The package's public face."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import simfast
from simfast.matching import StuffInstanceMatching

SCRIPT = """
import sys
before = set(sys.modules)
import simfast
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - set(sys.stdlib_module_names)))
"""


def test_importing_the_package_loads_nothing_heavy_and_matching_comes_when_it_is_asked_for():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["simfast"]
    assert simfast.StuffInstanceMatching is StuffInstanceMatching


def test_what_the_package_does_not_have_is_an_attribute_error():
    assert all(hasattr(simfast, name) for name in simfast.__all__)
    with pytest.raises(AttributeError, match="module 'simfast' has no attribute 'Matching'"):
        _ = simfast.Matching


def test_one_version_everywhere():
    root = Path(__file__).parents[1]
    cited = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert (cited[1], project["version"]) == (simfast.__version__,) * 2
