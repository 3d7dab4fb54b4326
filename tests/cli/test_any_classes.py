"""Whole runs with lists of a user's own: two classes and 255, stuff alone and things alone, through every command."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import train

from simfast.cli import main
from simfast.config.classes import classes_of
from simfast.models import checkpoint

LISTS = {"two": (1, 1), "255": (100, 155), "only stuff": (3, 0), "only things": (0, 3)}


@pytest.fixture(autouse=True)
def restore_global_state():
    yield
    torch.use_deterministic_algorithms(False)


def simfast(*arguments):
    """The exit code of `simfast ARGUMENTS`, or its message."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def write_data(root, num_stuff, num_things):
    """A class list with ids that are no train ids, and blocky pictures whose colour tells the class."""
    num = num_stuff + num_things
    ids = (3 * np.arange(num + 1) + 1) % 256  # the last one is of no class
    entries = [
        {"name": f"class {c}", "colour": [c, 255 - c, 77], "kind": "stuff" if c < num_stuff else "thing"}
        | {"ids": [int(ids[c])]}
        for c in range(num)
    ]
    (root / "mine.yaml").write_text(yaml.safe_dump({"classes": entries, "ignore": {"ids": [int(ids[num])]}}))
    rng = np.random.default_rng(0)
    for part, count in (("source/train", 2), ("target/train", 2), ("target/val", 1)):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(rng.permutation(np.resize(np.arange(num + 1), 256)).reshape(16, 16), np.ones((4, 4), int))
            image = np.stack([label, 255 - label, np.full_like(label, 77)], -1).astype(np.uint8)
            Image.fromarray(image).save(root / part / "images" / f"{i}.png")
            Image.fromarray(ids[label].astype(np.uint8)).save(root / part / "labels" / f"{i}.png")


@pytest.mark.parametrize(("num_stuff", "num_things"), LISTS.values(), ids=LISTS)
def test_a_whole_run_with_classes_of_ones_own(num_stuff, num_things, tmp_path, capsys):
    write_data(tmp_path, num_stuff, num_things)
    classes, out = classes_of(tmp_path / "mine.yaml"), tmp_path / "run"
    domains = [
        part
        for domain in ("source", "target")
        for part in (
            f"--{domain}",
            "folder",
            f"--{domain}-root",
            str(tmp_path / domain),
            f"--{domain}-size",
            "64",
            "64",
        )
    ]
    train(
        [
            *("--classes", str(tmp_path / "mine.yaml"), "--preset", "gta5", "--arch", "resnet18", *domains),
            *("--steps", "2", "--log-every", "2", "--eval-every", "2", "--panel-images", "1"),
            *("--lambda-ci", "1", "--stuff-rows", "2", "--max-instances", "2", "--device", "cpu", "--workers", "0"),
            *("--gate", "none", "--out", str(out)),
        ]
    )
    said, state = capsys.readouterr().out, checkpoint.load(out / "last.pt")
    losses = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    if not num_stuff:
        assert losses["stuff"] == 0
    if not num_things:
        assert losses["instance"] == 0
    assert len(state["matching"]["bank.written"]) == len(classes)
    assert "class 1" in said

    (tmp_path / "mine.yaml").unlink()  # the checkpoint has it
    report = tmp_path / "report.json"
    assert simfast("evaluate", out, "--report", report) == 0
    scores = json.loads(report.read_text())["scores"]
    assert [name for name in scores if name.startswith("iou/")] == [f"iou/{name}" for name in classes.names]
    assert scores["classes"] == len(classes)

    assert simfast("predict", out, tmp_path / "target/val/images", "--out", tmp_path / "predicted") == 0
    assert classes_of(tmp_path / "predicted" / "classes.yaml").names == classes.names
    label = np.asarray(Image.open(tmp_path / "predicted/labels/0.png"))
    colour = np.asarray(Image.open(tmp_path / "predicted/colour/0.png").convert("RGB"))
    assert (colour == np.array([entry.colour for entry in classes.entries])[label]).all()

    assert simfast("pseudo-labels", out, "--out", tmp_path / "pseudo") == 0
    assert list(json.loads((tmp_path / "pseudo/thresholds.json").read_text())["classes"]) == list(classes.names)

    counts = ("--pairs", "1", "--gradient-pairs", "1", "--bank-images", "2", "--fresh-banks")
    assert simfast("diagnose", out, *counts, "--report", report) == 0
    assert set(json.loads(report.read_text())["classes"]) <= set(classes.names)
