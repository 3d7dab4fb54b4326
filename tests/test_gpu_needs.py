"""The tests of ops that a GPU machine runs need torch with its Triton, numpy, cupy and pytest, and no other package."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [
    *(f"tests/ops/test_{op}.py" for op in ("components", "regions", "segment_mean", "nearest", "matching_ops")),
    *(f"tests/ops/test_{op}.py" for op in ("batch_norm_act", "conv1x1_statistics", "sum_of_taps", "upsampled_ops")),
    *("tests/matching/test_matching_fused.py", "tests/models/test_upsampled.py"),
]
OTHERS = [
    *("cc3d", "skimage", "hypothesis", "scipy", "pydantic", "tyro", "PIL", "cv2", "yaml", "tqdm", "tabulate"),
    *("tensorboard", "matplotlib", "torchmetrics", "cityscapesscripts", "pybind11", "pytest_benchmark", "torchvision"),
]
RUN = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

refused = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, Refuse())
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def gpu_cases(refused: list[str]) -> list[str]:
    """The cases marked `gpu` of the ops' tests, as pytest collects them where the `refused` packages are missing."""
    options = ["--collect-only", "--continue-on-collection-errors", "-m", "gpu", "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", RUN, ",".join(refused), *options, *FILES]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if "::" in line and not line.startswith("ERROR")]


def test_gpu_cases_are_the_same_without_other_packages():
    wanted = gpu_cases([])
    assert {case.split("::")[0] for case in wanted} == {*FILES}
    assert gpu_cases(OTHERS) == wanted
