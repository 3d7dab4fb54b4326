"""Every kind of step on the stub GPU: nothing is read, nothing waits, no more is launched than is known."""

import itertools
import json

import pytest
import stub_gpu
import torch
from launches import BOUNDS, images, matching
from stub_steps import (
    MODES,
    PRECISIONS,
    SETTINGS,
    STEADY,
    batches,
    case_name,
    make_trainer,
    numbers,
    small_trainer,
    steady_step,
    step_of,
)

from simfast.models.convolution_ways import Geometry, compute
from simfast.testing import determinism

KINDS = list(itertools.product(SETTINGS, MODES, PRECISIONS, (True, False)))
# What a rebuilt torch or a harmless change may add.
SLACK = 1.1

bounds = json.loads(BOUNDS.read_text())
counted_here = pytest.mark.skipif(bounds["torch"] != torch.__version__, reason=f"counted with torch {bounds['torch']}")


def within(found: dict, bound: dict) -> None:
    for what in ("launches", "memcpy", "memset", "nodes"):
        if what in bound:
            assert found[what] <= SLACK * bound[what], f"{what}: {found[what]}, known are {bound[what]}"
    assert found["sync"] <= bound["sync"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: case_name(*kind))
def test_a_step_never_waits_and_launches_no_more_than_is_known(kind):
    setting, mode, *_ = kind
    found = step_of(*kind)
    assert found.violations == []
    assert found.total("sync") == 0
    assert found.total("malloc") <= (mode == "eager")  # the allocator may have to cut its memory otherwise once more
    copies = found.names("memcpy")
    # The order of pasting is drawn on the host, in pinned memory.
    assert copies["HtoD"] == (SETTINGS[setting].get("self_training") == "online")
    assert set(copies) <= {"HtoD", "DtoD"}
    assert found.total("graph") == (mode == "graph")
    assert (found.launches <= 6) == (mode == "graph")
    if bounds["torch"] == torch.__version__:
        within(numbers(found, mode), bounds["steps"][case_name(*kind)])


@counted_here
def test_matching_launches_no_more_than_is_known():
    for name, found in matching().items():
        within(found, bounds["matching"][name])


@counted_here
def test_an_image_evaluated_or_labelled_launches_no_more_than_is_known():
    for name, found in images().items():
        within(found, bounds["images"][name])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_evaluation_a_saved_and_a_loaded_state_between_replays_leave_the_graph_alone(precision, seen):
    with determinism(True):
        trainer, inputs = small_trainer("online", "graph", precision), list(batches(2, "cuda"))
        for step in range(2):
            trainer.step(step, *inputs[step])
        state = trainer.state_dict()
        trainer.model.eval()
        with torch.no_grad():
            trainer.model(torch.zeros(1, 3, 32, 32, device="cuda"))
        trainer.model.train()
        stub_gpu.reset()
        trainer.step(2, *inputs[0])
        assert seen().total("graph") == 1
        assert seen().total("sync") == 0
        trainer.load_state_dict(state)
        for step in range(STEADY):
            trainer.step(step, *inputs[1])
        assert trainer.mode == "graph"
        assert seen().violations == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", MODES)
def test_engines_are_measured_in_the_first_step_alone_and_before_a_capture(mode, precision):
    with determinism(True):
        trainer = make_trainer("cuda", mode, precision, engines="measured")
        found = steady_step(trainer, list(batches(2, "cuda")))
        assert trainer.mode == mode
        assert found.violations == []
        assert found.total("sync") == 0
        assert found.total("graph") == (mode == "graph")
        layers = trainer.networks.engines._layers
        assert len(layers) == 3  # both domains have one size here
        kinds = {len(layer["forward"]["ms"]) for layer in layers.values()}
        assert kinds == {2, 3}
        assert [len(layer) for layer in layers.values()] == [2, 3, 3]  # no gradient of the images is asked for


@pytest.mark.parametrize("way", ["cudnn", "native", "product"])
def test_every_way_of_a_convolution_keeps_its_layout(way, seen):
    x = torch.zeros(2, 8, 5, 7, device="cuda").contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(16, 8, 1, 1, device="cuda")
    geometry = Geometry(tuple(x.shape), tuple(weight.shape), (1, 1), (0, 0), (1, 1), x.dtype, True)
    out = compute(way, "forward", geometry, x, weight, None)
    grad_input = compute(way, "grad_input", geometry, x, weight, out)
    assert (out.shape, grad_input.shape) == ((2, 16, 5, 7), x.shape)
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in (out, grad_input))
    assert compute(way, "grad_weight", geometry, x, weight, out).shape == weight.shape
    assert seen().total("sync") == 0
    assert seen().violations == []
