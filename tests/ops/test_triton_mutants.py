"""Wrong kernels are found: each mutant of a Triton kernel's source must turn the interpreter's cases red."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import simfast.ops

OPS = Path(simfast.ops.__file__).parent
HERE = Path(__file__).parent

# Runs cases of a test file, each with another source in place of a kernels' module, and tells which were red.
RUN = """
import json, runpy, sys, types
import simfast.ops
op, kernels, test, runs = sys.argv[1], sys.argv[2], runpy.run_path(sys.argv[3]), json.loads(sys.argv[4])
for source, case in runs:
    for name in (kernels, f"{op}_triton"):
        sys.modules.pop(f"simfast.ops.{name}", None)
        vars(simfast.ops).pop(name, None)
    module = types.ModuleType(f"simfast.ops.{kernels}")
    module.__file__ = source
    sys.modules[module.__name__] = module
    exec(compile(open(source).read(), source, "exec"), vars(module))
    try:
        test[case]()
    except AssertionError:
        print("red")
    else:
        print("same")
"""

FORWARD, BACKWARD = "batch_norm_act_forward_kernels", "batch_norm_act_backward_kernels"
TAPS, PRODUCT, UPSAMPLED = "sum_of_taps_kernels", "conv1x1_statistics_kernels", "upsampled_kernels"
# What is mutated, from what, to what, and the case that must see it.
MUTANTS = {
    "norm: rows beyond the last count": (
        FORWARD,
        "tl.minimum(tl.maximum((last - row + (ROWS - 1)) // ROWS, 0), STEPS)",
        "tl.full([ROWS, 1], STEPS, tl.int32)",
        "sizes",
    ),
    "norm: distances of rows that are not there": (
        FORWARD,
        "distance = tl.where(row + step * ROWS < last, distance, 0)",
        "distance = distance",
        "sizes",
    ),
    "norm: mean and variance swapped": (
        FORWARD,
        "tl.store(mean + column, centre, mask=there)\n            tl.store(variance + column, spread, mask=there)",
        "tl.store(mean + column, spread, mask=there)\n            tl.store(variance + column, centre, mask=there)",
        "every_kind",
    ),
    "norm: no residual": (FORWARD, "value += added[step].to(tl.float32)", "value += 0", "every_kind"),
    "norm: no ReLU": (FORWARD, "value = tl.where(value < 0, 0.0, value)  # NaN stays", "value = value", "every_kind"),
    "norm: NaN cut": (
        FORWARD,
        "value = tl.where(value < 0, 0.0, value)  # NaN stays",
        "value = tl.where(value > 0, value, 0.0)",
        "nan_stays_in_its_channel_and_zero_is_cut",
    ),
    "norm: the gradient passes at 0": (
        BACKWARD,
        "g = tl.where(output <= 0, 0.0, g)",
        "g = tl.where(output < 0, 0.0, g)",
        "nan_stays_in_its_channel_and_zero_is_cut",
    ),
    "norm: one consumer's gradient": (
        BACKWARD,
        "g = (g + more[step].to(tl.float32)).to(given[step].dtype).to(tl.float32)",
        "g = g",
        "every_kind",
    ),
    "norm: no mean of the gradient": (
        BACKWARD,
        "value = value - average - away[0] * slope",
        "value = value - away[0] * slope",
        "every_kind",
    ),
    "norm: a biased running variance": (
        FORWARD,
        "spread * (M.to(tl.float32) / (M - 1).to(tl.float32))",
        "spread",
        "every_kind",
    ),
    "norm: stretches merged without their distance": (
        FORWARD,
        "spread += within + count * (own - mean) * (own - mean)",
        "spread += within",
        "statistics_that_are_given_are_those_used",
    ),
    "norm: a second ReLU in one launch": (
        BACKWARD,
        "RELU and (semaphores is None or grad_residual is None)",
        "RELU",
        "one_launch_does_what_two_do",
    ),
    "product: a chunk's count": (
        PRODUCT,
        "count = tl.minimum(M - chunk * ROWS, ROWS)",
        "count = ROWS",
        "statistics_are_of_what_was_written_and_do_not_cancel",
    ),
    "product: distances beyond the last row": (
        PRODUCT,
        "distances = tl.where(row < M, values - mean, 0.0)",
        "distances = values - mean",
        "statistics_are_of_what_was_written_and_do_not_cancel",
    ),
    "upsampled: a pixel of two cells": (UPSAMPLED, "inside = x < x_end", "inside = x < W", "each_pixel_is_one_cells"),
    "upsampled: the softmax's sum": (
        UPSAMPLED,
        "(p[v] * (g[v] - product),)",
        "(p[v] * g[v],)",
        "softmax_and_gradient_of_every_size",
    ),
    "upsampled: three corners": (
        UPSAMPLED,
        "tl.static_range(4):",
        "tl.static_range(3):",
        "softmax_and_gradient_of_every_size",
    ),
    "taps: beyond the row's end": (TAPS, "& (x + dx < W)", "", "any_map_and_dilations"),
    "taps: the centre counted anew": (TAPS, "- (place > 4)", "", "any_map_and_dilations"),
    "taps: backward shifted as forward": (
        TAPS,
        "- distance[None, :]",
        "+ distance[None, :]",
        "any_map_and_dilations",
    ),
}


@pytest.mark.parametrize("kernels", [FORWARD, BACKWARD, TAPS, PRODUCT, UPSAMPLED])
def test_every_mutant_is_seen_and_the_kernels_themselves_are_not(kernels, tmp_path):
    source = (OPS / f"{kernels}.py").read_text()
    op = kernels.removesuffix("_kernels").removesuffix("_forward").removesuffix("_backward")
    mutants = {name: rest for name, (of, *rest) in MUTANTS.items() if of == kernels}
    runs = []
    for number, (before, after, case) in enumerate(mutants.values()):
        assert before in source, before
        mutant = tmp_path / f"{number}.py"
        mutant.write_text(source.replace(before, after))
        runs.append((str(mutant), case))
    cases = dict.fromkeys(case for _, case in runs)
    runs += [(str(OPS / f"{kernels}.py"), case) for case in cases]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-c", RUN, op, kernels, str(HERE / f"test_{op}_triton.py"), json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = dict(zip([*mutants, *cases], done.stdout.split(), strict=True))
    assert found == dict.fromkeys(mutants, "red") | dict.fromkeys(cases, "same")
