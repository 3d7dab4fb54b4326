"""What the tests of ablations share."""

import dataclasses
import sys

import pytest

from simfast.config.presets import PRESETS

# Stands for the trainer: writes down how it was called, and a result whose score tells its settings.
TRAINER = """
import json, pathlib, sys, yaml
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(arguments.get("--out") or pathlib.Path(arguments["--resume"]).parent)
groups = yaml.safe_load((out / "settings.yaml").read_text()).values()
settings = {key: value for group in groups for key, value in group.items()}
with open(out.parent / "calls.txt", "a") as calls:
    print(out.name, "resumed" if "--resume" in arguments else "new", file=calls)
(out / "arguments.json").write_text(json.dumps(sys.argv[1:]))
if (out.parent / "fail").exists() and settings["method"] == (out.parent / "fail").read_text():
    sys.exit(3)
score = settings["lambda_ci"] + settings["seed"] / 100
last, best = ({"step": 1, "miou": miou, "iou/road": miou / 2} for miou in (score, score + 0.1))
result = {"seed": settings["seed"], "last": last, "best": best, "environment": {"device": "abacus"}}
(out / "result.json").write_text(json.dumps(result))
(out / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "step": 1, "miou": score}) + "\\n")
"""


@pytest.fixture
def shared(tmp_path):
    """Settings that all rows share, and their folder."""
    return dataclasses.replace(PRESETS["gta5"], out=tmp_path)


@pytest.fixture
def trainer(tmp_path):
    path = tmp_path / "stand_in.py"
    path.write_text(TRAINER)
    return [sys.executable, str(path)]
