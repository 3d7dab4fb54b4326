"""What a run without labels leaves to look at: a row, a line, a table, pictures without a truth, curves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from simfast.config.classes import CITYSCAPES
from simfast.inference.signals import Signals
from simfast.report import figures
from simfast.report.panels import save_comparison, save_panel
from simfast.report.signals import signal_row, signal_table, signal_text

SIGNALS = Signals(100, 0.871, 0.25, 0.5, 0.9, (0.75, 0.25, 0.0))
SOURCE = (0.5, 0.25, 0.25)
NAMES = ("road", "tin of paint", "sky")


def test_a_row_has_no_score_and_every_signal():
    row = signal_row(SIGNALS, SOURCE, NAMES)
    assert json.loads(json.dumps(row)) == row
    expected = {"miou": None, "confidence": 0.871, "entropy": 0.25, "over_cap": 0.5, "mirror": 0.9}
    expected |= {"share_distance": 0.25, "share/road": 0.75, "share/tin of paint": 0.25, "share/sky": 0}
    assert row == expected


def test_a_line_and_a_table_say_them_in_percent():
    row = signal_row(SIGNALS, SOURCE, NAMES)
    assert signal_text(row, 0.9) == (
        "confidence 87.1 %, entropy 25.0 % of log K, 50.0 % of the pixels over 0.9, 90.0 % the same when mirrored, "
        "class shares 25.0 % from the labels'"
    )
    lines = signal_table({"last (4)": row}, dict(zip(NAMES, SOURCE, strict=True))).splitlines()
    assert lines[0].split("  ")[-1] == "labels"
    assert [line.split()[-2:] for line in lines[2:5]] == [["75.0", "50.0"], ["25.0", "25.0"], ["0.0", "25.0"]]
    assert lines[5].split()[-1] == "87.1"


@pytest.mark.parametrize("truth", [True, False])
def test_panels_show_the_truth_where_there_is_one(truth, tmp_path):
    maps = [torch.full((8, 10), c, dtype=torch.uint8) for c in (1, 2)][: 1 + truth]
    save_panel(tmp_path / "panel.png", [(torch.full((3, 4, 5), 9, dtype=torch.uint8), *maps)] * 2, CITYSCAPES)
    panel = np.asarray(Image.open(tmp_path / "panel.png"))
    assert panel.shape == (2 * 8, 10 * (2 + truth), 3)
    assert (panel[:, 5] == 9).all()
    for with_data, columns in ((True, 3 + truth), (False, 2)):
        panels = {"a": tmp_path / "panel.png", "b": tmp_path / "panel.png"}
        save_comparison(tmp_path / "both.png", panels, with_data=with_data, truth=truth)
        assert Image.open(tmp_path / "both.png").width == round(120 * 2.4 * columns)


def test_curves_are_of_what_there_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure.axes))
    scored = [{"kind": "train", "step": 1}, {"kind": "eval", "step": 2, "miou": 0.2}]
    unscored = [{"kind": "eval", "step": step} | signal_row(SIGNALS, SOURCE, NAMES) for step in (1, 2)]
    void = [{"kind": "eval", "step": 2, "miou": None}]
    for runs in ({"a": scored, "b": void}, {"a": unscored}, {"a": scored, "b": unscored}, {"a": void}):
        figures.save_curve(tmp_path / "curve.png", runs)
    found = [[[line.get_label() for line in axes.lines] for axes in figure] for figure in drawn]
    signals = ["mean confidence", "the same when mirrored"]
    assert found == [[["a"]], [[f"a, {x}" for x in signals]], [["a"], [f"b, {x}" for x in signals]], [[]]]
    assert list(drawn[1][0].lines[0].get_ydata()) == pytest.approx([87.1, 87.1])
