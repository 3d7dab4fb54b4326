"""Rows and tables of scores: which classes a mean is over can be read from them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simfast.config.classes import CITYSCAPES
from simfast.data.classes import CLASS_NAMES, CLASS_SETS, PALETTE
from simfast.inference.evaluate import Scores
from simfast.models.weights import WeightsReport
from simfast.report.panels import save_panel
from simfast.report.scores import evaluation_report, evaluation_text, score_row, score_table

SCORES = Scores.of(torch.eye(19, dtype=torch.int64), CLASS_SETS[16], range(19))


def lines(table):
    """The cells of a table's rows, by their titles."""
    rows = [line.rsplit("  ", 1) for line in table.splitlines()[2:]]
    return {title.strip(): cell.strip() for title, cell in rows}


def without(scores, *class_ids):
    confusion = torch.eye(19, dtype=torch.int64)
    for c in class_ids:
        confusion[c, c] = 0
    return Scores.of(confusion, scores.class_ids, scores.iou)


def test_a_row_has_every_mean_and_every_class():
    row = score_row(without(SCORES, 16, 0))
    assert list(row)[:6] == ["miou", "classes", "miou/19", "miou/16", "miou/13", "pixel_accuracy"]
    assert list(row)[6:] == [f"iou/{name}" for name in CLASS_NAMES]
    assert (row["miou"], row["classes"], row["iou/train"], row["iou/road"], row["iou/car"]) == (1, 15, None, None, 1)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert score_row(Scores({0: math.nan}, (0,), math.nan, {}, math.nan))["miou"] is None


def test_a_table_says_over_how_many_classes_each_mean_is():
    full = lines(score_table({"last": score_row(SCORES)}))
    assert {name: full[f"mIoU, {name} classes"] for name in (19, 16, 13)} == {19: "100.0", 16: "100.0", 13: "100.0"}
    assert (full["classes"], full["mIoU"]) == ("16", "100.0")
    short = lines(score_table({"last": score_row(without(SCORES, 16, 3))}, SCORES.class_ids))
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
    assert (tiles == np.concatenate([[[9] * 3] * 2, PALETTE[[1, 11]], PALETTE[[0, 10]]])).all()


def test_a_mean_that_the_labels_do_not_allow_is_not_in_the_table():
    row = score_row(Scores.of(torch.eye(19, dtype=torch.int64), [0, 2]))
    assert lines(score_table({"x": row})) == {
        "road": "100.0",
        "building": "100.0",
        "classes": "2",
        "mIoU": "100.0",
    }


def test_columns_may_have_different_classes():
    synthia = score_row(Scores.of(torch.eye(19, dtype=torch.int64), CLASS_SETS[16]))
    table = score_table({"GTA5": score_row(SCORES), "SYNTHIA": synthia})
    cells = {line[:16].strip(): line[16:].split() for line in table.splitlines()[2:]}
    assert cells["terrain"] == cells["mIoU, 19 classes"] == ["100.0", "-"]
    assert cells["mIoU, 16 classes"] == ["100.0", "100.0"]


def test_an_evaluation_names_the_checkpoint_the_data_and_the_classes():
    weights = WeightsReport(Path("runs/a/best.pt"), 524, 524, (("layer5.x", "why"),), (), "bgr")
    found = evaluation_report(without(SCORES, 0), weights, "cityscapes val", 500)
    assert found["tensors"] == {"matched": 524, "total": 524, "dropped": 1}
    assert found["scores"] == score_row(without(SCORES, 0))
    assert found["means"]["miou"] == found["means"]["miou/16"] == [CLASS_NAMES[c] for c in CLASS_SETS[16] if c]
    assert {name: len(classes) for name, classes in found["means"].items()} == pytest.approx(
        {"miou": 15, "miou/19": 18, "miou/16": 15, "miou/13": 12}
    )
    text = evaluation_text(json.loads(json.dumps(found)))
    for said in ("runs/a/best.pt: 524 of 524 tensors matched, 1 of the file unused, bgr input", "500 images"):
        assert said in text
    assert "(terrain)" in text
    assert "mIoU, 13 classes" in text
