"""The package as a user has it: the wheel in a fresh environment, in an empty folder; and the core without the rest."""

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from building import ROOT, run
from PIL import Image

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What `[train]` installs, by the names that are imported.
TRAIN = ("PIL", "cv2", "pydantic", "yaml", "tyro", "tqdm", "tabulate", "tensorboard", "matplotlib", "safetensors")
HIDE = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAIN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
CORE = """
import torch
from simfast import ops, reference
from simfast.matching import StuffInstanceMatching

matching = StuffInstanceMatching(8, stuff=[0], things=[1])
features, labels = torch.rand(1, 8, 9, 7), torch.arange(63).view(1, 9, 7) % 2
matching.remember(features, labels)
stuff, instance = matching(features.requires_grad_(), labels)
(stuff + instance).backward()
assert torch.equal(ops.connected_components(labels)[0], reference.connected_components(labels)[0])
print(matching.ops)
"""


def test_the_core_runs_on_torch_and_numpy():
    assert len(EXTRAS["train"]) == len(TRAIN)
    used = run(sys.executable, "-c", HIDE + CORE, cwd=ROOT)
    assert used.stdout == "fused\n"


@pytest.mark.parametrize("arguments", [["--help"], ["train"], ["predict", "run", "photo.jpg"]])
def test_without_its_packages_the_command_says_what_to_install(arguments):
    call = f"""
from simfast.cli import main
try:
    main({arguments})
except SystemExit as error:
    print(error)
"""
    said = run(sys.executable, "-c", HIDE + call, cwd=ROOT)
    assert said.stdout.startswith("simfast: needs its training packages: pip install 'simfast[train]' (got no ")


@pytest.mark.slow
def test_a_fresh_installation_trains_evaluates_predicts_and_compares(installed):
    """In this order, in one folder: each command takes what those before it left."""
    where = installed("python", "-c", "import os, simfast; print(simfast.__file__); print(os.getcwd())").stdout.split()
    home = Path(where[1])
    assert home.name == "empty"
    assert not list(home.iterdir())
    assert Path(where[0]).is_relative_to(home.parent / "venv")
    assert installed("python", "-m", "simfast", "--version").stdout == installed("simfast", "--version").stdout

    streets = ("--preset", "streets", "--source-size", "64", "48", "--target-size", "64", "48", "--steps", "2")
    installed("simfast", "train", *streets, "--out", "run")
    assert json.loads((home / "run" / "result.json").read_text())["step"] == 2
    assert "mIoU" in installed("simfast", "evaluate", "run").stdout
    Image.fromarray(np.full((60, 80, 3), 127, np.uint8)).save(home / "photo.jpg")
    installed("simfast", "predict", "run", "photo.jpg", "--out", "p")
    assert [Image.open(file).size for file in (home / "p").rglob("*.png")] == [(80, 60)] * 3
    rows = ("--rows", "source-only", "aa")
    installed("simfast", "ablate", *streets, *rows, "--out", "ab")
    assert len([*(home / "ab").rglob("result.json")]) == 2


@pytest.mark.slow
def test_a_caller_in_strict_types_is_told_the_types(installed, tmp_path):
    """The wheel says that it is typed, and its public functions are, all of them that `caller.py` calls."""
    caller = Path(__file__).with_name("caller.py").read_text()
    (tmp_path / "caller.py").write_text(caller)
    checked = installed("python", "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", tmp_path / "caller.py")
    assert "Success" in checked.stdout
