"""Counts the memory of captured steps by torch's own allocator, on the stub GPU, and keeps it as JSON:

    python -m tests.stub tests/stub/step_memory.py bench/results/launches/memory.json [--ways plain fused "fused, low"]
    python -m bench.memory_table docs/step.md

The file's other ways stay. A captured step holds a pool of its own, which is part of what is reserved. The workspace of
a convolution is assumed (64 MiB), for cuDNN is a stand-in; a CUDA context, some hundred MiB, is not counted.
"""

import argparse
import dataclasses
import gc
import itertools
import json
from pathlib import Path

import stub_gpu
import torch
from launches import state, write

from bench.memory_table import WAYS
from simfast.config import Config
from simfast.config.presets import PRESETS, of_recipe
from simfast.testing import determinism, smooth_labels
from simfast.training.build import build_trainer

CUDA = torch.device("cuda")
SETTINGS = {"plain": {}, "fused": {"fuse": ("all",)}, "fused, low": {"fuse": ("all",), "memory": "low"}}
STAGE_2 = {"stage": 2, "pseudo_labels": "x"}
ONLINE = {"self_training": "online"}
KINDS = {
    "stage 1": ("paper", {}),
    "stage 2": ("paper", STAGE_2),
    "stage 1, online": ("paper", ONLINE),
    "released recipe, stage 1": ("released", {}),
    "released recipe, stage 2": ("released", STAGE_2),
}
OTHERS = {
    "camvid, VGG16 at 480x360, bf16": ("camvid", "paper", {"precision": "bf16"}, (1, 2, 4)),
    "streets-gpu, ResNet-18 at 320x240, bf16": ("streets-gpu", "paper", {"precision": "bf16"}, (8,)),
}
# By name: preset, recipe, more settings, batch sizes.
RUNS = {
    f"{preset}, {kind}, {precision}": (preset, recipe, more | {"precision": precision}, (1, 2, 4))
    for preset in ("gta5", "synthia")
    for precision in ("bf16", "fp32")
    for kind, (recipe, more) in KINDS.items()
} | OTHERS
STEPS = 3  # a graph is captured at the first


def settings(preset: str, recipe: str, more: dict) -> Config:
    base = PRESETS[preset]
    how = {"step_mode": "graph"} | of_recipe(recipe, base.arch) | more
    return dataclasses.replace(base, preset=preset, recipe=recipe, weights=None, **how)


def batch(config: Config) -> list[torch.Tensor]:
    inputs = []
    for width, height in (config.source_size, config.target_size):
        inputs.append(torch.zeros(config.batch_size, 3, height, width, dtype=torch.uint8))
        inputs.append(smooth_labels(config.batch_size, height, width, scale=64))
    return [x.to(CUDA) for x in (inputs if config.stage == 2 else inputs[:3])]


def forget() -> None:
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # one for each stream that was captured on
    torch.cuda.empty_cache()


def memory(config: Config) -> dict[str, int]:
    """MiB of a run's steps, with its images of one step, its networks and optimisers."""
    forget()
    left = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with determinism(True):
        trainer, inputs = build_trainer(config, CUDA, None), batch(config)
        for step in range(STEPS):
            trainer.step(step, *inputs)
        torch.cuda.synchronize()
        gc.collect()
        found = {
            "peak_allocated_mib": torch.cuda.max_memory_allocated() - left,
            "peak_reserved_mib": torch.cuda.max_memory_reserved(),
            "allocated_mib": torch.cuda.memory_allocated() - left,
            "reserved_mib": torch.cuda.memory_reserved(),
        }
    return {name: round(value / 2**20) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="result file")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how a step runs")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help="these runs alone")
    arguments = parser.parse_args()
    if not stub_gpu.active():
        parser.error("needs the stub GPU")
    content = json.loads(arguments.file.read_text()) if arguments.file.exists() else {"commits": {}, "rows": {}}
    rows = content["rows"]
    for name in arguments.runs:
        preset, recipe, more, sizes = RUNS[name]
        for way, size in itertools.product(arguments.ways, sizes):
            found = memory(settings(preset, recipe, more | SETTINGS[way] | {"batch_size": size}))
            rows.setdefault(name, {}).setdefault(way, {})[str(size)] = found
            print(name, way, size, found, flush=True)
    content["rows"] = {name: rows[name] for name in RUNS if name in rows}
    content["commits"] |= dict.fromkeys(arguments.ways, state())
    content["torch"] = torch.__version__
    write(content, arguments.file)


if __name__ == "__main__":
    main()
