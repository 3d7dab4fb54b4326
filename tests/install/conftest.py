"""What is installed: the distributions of this tree, each built once, and environments to install them in."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from building import ROOT, build, run

NOT_SOURCES = (".git", ".venv*", "build", "dist", "runs", "site", "*.egg-info", "*.so", "__pycache__")


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of this checkout, without what earlier builds left in it."""
    to = tmp_path_factory.mktemp("tree") / "simfast"
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return to


@pytest.fixture(scope="session")
def distributions(tree, tmp_path_factory):
    """The wheel, built from the source distribution, and that."""
    wheel, sdist = build(tree, tmp_path_factory.mktemp("dist"))
    return wheel, sdist


@pytest.fixture(scope="session")
def installed(distributions, tmp_path_factory):
    """Runs commands of a fresh environment, in which the wheel was installed, in an empty folder far from this one.

    The packages that ours needs are lent from the environment of the tests, behind those of the fresh one: no network
    is needed, and seconds instead of minutes. Ours is not among them: it is found first in the fresh one.
    """
    root = tmp_path_factory.mktemp("fresh")
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SIMFAST_LIBRARY")}
    run(sys.executable, "-m", "venv", "--without-pip", root / "venv", cwd=root, env=env)
    python = root / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, distributions[0], cwd=root, env=env)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root, env=env)
    Path(site.stdout.strip(), "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    empty = root / "empty"
    empty.mkdir()
    return lambda *command: run(python.parent / command[0], *command[1:], cwd=empty, env=env)
