"""The training step on the stub GPU, in every setting: what the tests hold and launches.py counts."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import stub_gpu
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from test_step_modes import batches, make_trainer

from simfast.matching import StuffInstanceMatching
from simfast.testing import STUFF, THINGS, determinism
from simfast.training.step import Trainer

STAGE_2 = {"stage": 2, "pseudo_labels": "x"}
FDA = {"transfer": "fda", "fda_beta": 0.1}
SETTINGS = {
    "stage 1": {},
    "stage 2": STAGE_2,
    "online": {"self_training": "online"},
    "fda": FDA,
    "lab": {"transfer": "lab"},
    "aa": {"method": "aa"},
    "source-only": {"method": "source-only"},
    "target-only": {"method": "target-only"},
    "released": {"gate": "released", "fill_rule": "full"},  # see small_trainer
    "ls-gan": {"adversary": "ls-gan"},
    "2+online+fda": STAGE_2 | FDA | {"self_training": "online"},
}
MODES = ("eager", "graph")
PRECISIONS = ("fp32", "bf16", "fp16")
# A step from which on nothing is new: the first one of a graph captures, the first three of an allocator allocate.
STEADY = 3


def case_name(setting: str, mode: str, precision: str, deterministic: bool) -> str:
    return ", ".join([setting, mode, precision, *([] if deterministic else ["not deterministic"])])


@contextmanager
def no_waiting() -> Iterator[None]:
    """torch raises where it would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steady_step(trainer, inputs: list) -> stub_gpu.Seen:
    """What one step asks of the device, after STEADY others; `violations` are those of all of them."""
    gc.collect()
    torch.cuda.empty_cache()
    violations = []
    for step in range(STEADY + 1):
        stub_gpu.reset()
        with no_waiting() if step == STEADY else nullcontext():
            trainer.step(step, *inputs[step % len(inputs)])
        found = stub_gpu.seen()
        violations += found.violations
    found.violations = violations
    return found


def small_trainer(setting: str, mode: str, precision: str) -> Trainer:
    """Of the tests' small networks."""
    trainer = make_trainer("cuda", mode, precision, **SETTINGS[setting])
    if setting == "released":
        rules = {"gate": "released", "fill_rule": "full"}
        trainer.matching = StuffInstanceMatching(16, STUFF, THINGS, stuff_rows=3, max_instances=2, **rules).to("cuda")
    return trainer


def step_of(setting: str, mode: str, precision: str, deterministic: bool) -> stub_gpu.Seen:
    """`steady_step` of the tests' small networks, inputs at 96x64."""
    with determinism(deterministic):
        return steady_step(small_trainer(setting, mode, precision), list(batches(2, "cuda")))


def numbers(found: stub_gpu.Seen, mode: str) -> dict[str, int]:
    """As they stand in result files; nodes are those of the step's graph."""
    result = {kind: found.total(kind) for kind in ("memcpy", "memset", "sync", "malloc")}
    nodes = {"nodes": found.nodes.total()} if mode == "graph" else {}
    return {"launches": found.launches, **result, **nodes}
