"""CPU training steps of two built checkouts, taken in turns: is one slower than the other?

    python -m bench.paired OTHER --out bench/results/paired [--turns 5]

OTHER is the other checkout's folder, with its native library built. Every turn is a process of its own for each
checkout, on one thread, with the same weights and inputs; what is compared is the processor time of a step, the median
of a turn's. Written is each turn's median of both, the median of the turns' ratios, this over OTHER, and whether the
losses are the same bits.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = {"resnet18": 8, "resnet50": 4}  # that are timed in a turn, after two that are not


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()

    from bench.run import machine, slug, write  # not in the other checkout's process, which has modules of its own

    trees = {"this": ROOT, "other": arguments.other.resolve()}
    commits = {name: commit(tree) for name, tree in trees.items()}
    rows = {arch: {"processor_ms": {name: [] for name in trees}, "losses": set()} for arch in STEPS}
    for turn in range(arguments.turns):
        for name in sorted(trees, reverse=turn % 2 == 1):
            for arch, found in measured_in(trees[name]).items():
                rows[arch]["processor_ms"][name].append(found["processor_ms"])
                rows[arch]["losses"].add(json.dumps(found["losses"]))
    for arch, row in rows.items():
        row["same_losses"] = len(row.pop("losses")) == 1
        row["ratios"] = [a / b for a, b in zip(*(row["processor_ms"][name] for name in trees), strict=True)]
        row["ratio"] = statistics.median(row["ratios"])
        print(f"{arch}: {row['ratio']:.3f} of the other's time, {'the same' if row['same_losses'] else 'OTHER'} losses")
    found = {key: value for key, value in machine().items() if key not in ("commit", "gpu", "driver", "cuda")}
    path = arguments.out / f"{slug(found['cpu'])}-{commits['other'][:10]}-{commits['this'][:10]}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(path, found | {"commits": commits, "threads": 1, "steps": rows})
    print(path)


def commit(tree: Path) -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.strip()


def measured_in(tree: Path) -> dict:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    assert Path(found.pop("package")).parents[1] == tree, f"must be {tree}'s own package"
    return found


def measure() -> dict:
    """Of the package on the path: processor milliseconds of a step (median), and its last losses, for each network."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    found = {"package": importlib.import_module("simfast").__file__}
    for arch, steps in STEPS.items():
        step, times = new_step(arch), []
        for number in range(2 + steps):
            begin = time.process_time()
            losses = step(number)
            times.append(1e3 * (time.process_time() - begin))
        losses = {name: float(value) for name, value in losses.items()}
        found[arch] = {"processor_ms": statistics.median(times[2:]), "losses": losses}
    return found


def new_step(arch: str):
    import torch

    from simfast.config import Config
    from simfast.matching import StuffInstanceMatching
    from simfast.models import Discriminator, deeplab_v2
    from simfast.testing import STUFF, THINGS, smooth_labels
    from simfast.training.step import Trainer

    torch.manual_seed(0)
    (width, height), (w, h) = (160, 96), (128, 64)
    config = Config(arch=arch, precision="fp32", source_size=(width, height), target_size=(w, h), lr=1e-4)
    model = deeplab_v2(arch, 19)
    matching = StuffInstanceMatching(model.num_features, STUFF, THINGS)
    trainer = Trainer(config, model, Discriminator(19), matching, "rgb", torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    source = torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=g)
    target = torch.randint(256, (1, 3, h, w), dtype=torch.uint8, generator=g)
    labels = smooth_labels(1, height, width, scale=32)
    return lambda number: trainer.step(number, source, labels, target)


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
    else:
        main()
