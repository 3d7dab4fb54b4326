"""Rows and tables of scores: which classes a mean is over can be read from them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simfast.config.classes import CITYSCAPES, classes_of
from simfast.data.classes import palette
from simfast.inference.evaluate import Scores
from simfast.models.weights import WeightsReport
from simfast.report.panels import save_panel
from simfast.report.scores import coverage, evaluation_report, evaluation_text, score_row, score_table

NAMES, SETS = CITYSCAPES.names, CITYSCAPES.sets
SCORES = Scores.of(torch.eye(19, dtype=torch.int64), SETS["16"], range(19), SETS)


def lines(table):
    """The cells of a table's rows, by their titles."""
    rows = [line.rsplit("  ", 1) for line in table.splitlines()[2:]]
    return {title.strip(): cell.strip() for title, cell in rows}


def without(scores, *class_ids):
    confusion = torch.eye(19, dtype=torch.int64)
    for c in class_ids:
        confusion[c, c] = 0
    return Scores.of(confusion, scores.class_ids, scores.iou, SETS)


def test_a_row_has_every_mean_and_every_class():
    row = score_row(without(SCORES, 16, 0), CITYSCAPES)
    assert list(row)[:6] == ["miou", "classes", "miou/19", "miou/16", "miou/13", "pixel_accuracy"]
    assert list(row)[6:] == [f"iou/{name}" for name in NAMES]
    assert (row["miou"], row["classes"], row["iou/train"], row["iou/road"], row["iou/car"]) == (1, 15, None, None, 1)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert score_row(Scores({0: math.nan}, (0,), math.nan, {}, math.nan), CITYSCAPES)["miou"] is None


def test_a_table_says_over_how_many_classes_each_mean_is():
    full = lines(score_table({"last": score_row(SCORES, CITYSCAPES)}, CITYSCAPES))
    assert {name: full[f"mIoU, {name} classes"] for name in (19, 16, 13)} == {19: "100.0", 16: "100.0", 13: "100.0"}
    assert (full["classes"], full["mIoU"]) == ("16", "100.0")
    short = lines(score_table({"last": score_row(without(SCORES, 16, 3), CITYSCAPES)}, CITYSCAPES, SCORES.class_ids))
    assert short["mIoU, 19 classes"] == "100.0 (of 17)"
    assert short["mIoU, 16 classes"] == "100.0 (of 15)"
    assert short["mIoU, 13 classes"] == "100.0"
    assert (short["classes"], short["(train)"], short["(truck)"], short["wall"]) == ("15", "-", "100.0", "-")


def test_a_panel_of_large_pictures_is_shrunk(tmp_path):
    label = torch.zeros(100, 2048, dtype=torch.uint8)
    label[:, 1024:] = 10
    save_panel(
        tmp_path / "panel.png", [(torch.full((3, 50, 1024), 9, dtype=torch.uint8), label + 1, label)] * 2, CITYSCAPES
    )
    panel = np.asarray(Image.open(tmp_path / "panel.png"))
    assert panel.shape == (2 * 50, 3 * 1024, 3)
    tiles = panel[:, ::512]
    assert (tiles == np.concatenate([[[9] * 3] * 2, palette(CITYSCAPES)[[1, 11]], palette(CITYSCAPES)[[0, 10]]])).all()


def test_a_mean_that_the_labels_do_not_allow_is_not_in_the_table():
    row = score_row(Scores.of(torch.eye(19, dtype=torch.int64), [0, 2], sets=SETS), CITYSCAPES)
    assert lines(score_table({"x": row}, CITYSCAPES)) == {
        "road": "100.0",
        "building": "100.0",
        "classes": "2",
        "mIoU": "100.0",
    }


def test_columns_may_have_different_classes():
    synthia = score_row(Scores.of(torch.eye(19, dtype=torch.int64), SETS["16"], sets=SETS), CITYSCAPES)
    table = score_table({"GTA5": score_row(SCORES, CITYSCAPES), "SYNTHIA": synthia}, CITYSCAPES)
    cells = {line[:16].strip(): line[16:].split() for line in table.splitlines()[2:]}
    assert cells["terrain"] == cells["mIoU, 19 classes"] == ["100.0", "-"]
    assert cells["mIoU, 16 classes"] == ["100.0", "100.0"]


def test_an_evaluation_names_the_checkpoint_the_data_and_the_classes():
    weights = WeightsReport(Path("runs/a/best.pt"), 524, 524, 524, 525, (("layer5.x", "why"),), (), "bgr")
    found = evaluation_report(without(SCORES, 0), CITYSCAPES, weights, "cityscapes val", 500)
    assert found["tensors"] == {"matched": 524, "total": 524, "used": 524, "in_file": 525, "dropped": 1}
    assert found["scores"] == score_row(without(SCORES, 0), CITYSCAPES)
    assert found["means"]["miou"] == found["means"]["miou/16"] == [NAMES[c] for c in SETS["16"] if c]
    assert {name: len(classes) for name, classes in found["means"].items()} == pytest.approx(
        {"miou": 15, "miou/19": 18, "miou/16": 15, "miou/13": 12}
    )
    text = evaluation_text(json.loads(json.dumps(found)), CITYSCAPES)
    assert found["absent"] == ["road"]
    for said in (
        "runs/a/best.pt: 524 of 524 tensors of the network set, by 524 of 525 of the file, bgr input",
        "500 images",
        "mIoU is over 15 of 19 classes, all but road, terrain, truck, train\n",
        "the labels scored have no pixel of road\n",
    ):
        assert said in text
    assert "(terrain)" in text
    assert "mIoU, 13 classes" in text


def test_a_users_classes_and_sets_are_named_and_what_a_mean_leaves_out_is_said():
    colours = ([255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9])
    entries = [{"name": n, "colour": c, "kind": "thing"} for n, c in zip("abcd", colours, strict=True)]
    classes = classes_of({"title": "mine", "classes": entries, "score_sets": {"early": ["a", "b"], "late": ["c"]}})
    confusion = torch.eye(4, dtype=torch.int64)
    confusion[2, 2], confusion[0, 2] = 0, 1  # c is predicted, and never there
    row = score_row(Scores.of(confusion, [0, 1, 2], range(4), classes.sets), classes)
    assert row == {
        **{"miou": 0.75, "classes": 2, "miou/early": 0.75, "miou/late": None, "pixel_accuracy": 0.75},
        **{"iou/a": 0.5, "iou/b": 1, "iou/c": None, "iou/d": 1},
    }
    assert lines(score_table({"x": row}, classes, [0, 1, 2])) == {
        **{"a": "50.0", "b": "100.0", "c": "-", "(d)": "100.0", "classes": "2", "mIoU": "75.0"},
        **{"mIoU, early": "75.0", "mIoU, late": "- (of 0)"},
    }
    assert coverage(row, classes, [0, 1, 2], [0, 1, 2]) == [
        "mIoU is over 2 of 4 classes: a, b",
        "the labels scored have no pixel of c",
        "the labels trained on do not have d",
    ]
    full = score_row(Scores.of(torch.eye(4, dtype=torch.int64), range(4)), classes)
    assert coverage(full, classes, range(4), range(4)) == []
