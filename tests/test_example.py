"""The example runs, learns, and is a plain loop plus fewer than 20 lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "plain_loop.py"


def run(script: Path) -> list[dict[str, float]]:
    """What the script reports, line by line."""
    root = EXAMPLE.parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return [{name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)", s.split(":")[1])} for s in lines]


def test_the_example_learns_and_both_losses_are_at_work():
    reports = run(EXAMPLE)
    assert len(reports) == 4
    assert reports[-1]["segmentation"] < reports[0]["segmentation"]
    assert reports[-1]["stuff"] > 0
    assert reports[-1]["instance"] > 0


def test_without_the_marked_lines_it_is_a_plain_loop(tmp_path):
    lines = EXAMPLE.read_text().splitlines()
    plain = [line for line in lines if not line.endswith("  # +")]
    assert 0 < len(lines) - len(plain) < 20
    assert "simfast" not in "\n".join(plain)
    (tmp_path / "plain.py").write_text("\n".join(plain))
    assert all(set(report) == {"segmentation"} for report in run(tmp_path / "plain.py"))
