"""Counts what steps, matching, evaluation and pseudo labels ask of a GPU, on the stub, and keeps it as JSON:

    python -m tests.stub tests/stub/launches.py bench/results/launches/stub.json --section after

The file's other sections stay, so that one file holds the counts before a change and after it. With `--fuse all` a
section has the step at the paper's size alone, with these parts fused, which bench/roofline.py counts by rules.
`--bounds` writes tests/stub/bounds.json, which the tests hold. Every number is exact, and none is a time or was
measured on a GPU. A call of cuDNN or cuBLAS counts as one launch, whatever it would launch.
"""

import argparse
import gc
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stub_gpu
import torch
from stub_steps import MODES, PRECISIONS, SETTINGS, case_name, numbers, steady_step, step_of

from simfast.config import Config
from simfast.config.classes import CITYSCAPES
from simfast.inference.evaluate import evaluate
from simfast.inference.pseudo_labels import make_pseudo_labels
from simfast.matching import StuffInstanceMatching, correct_labels, predicted_labels
from simfast.models.deeplab import deeplab_v2
from simfast.models.discriminator import Discriminator
from simfast.runtime.environment import git
from simfast.testing import STUFF, THINGS, determinism, smooth_labels
from simfast.training.step import Trainer

BOUNDS = Path(__file__).with_name("bounds.json")
CUDA = torch.device("cuda")
SIZES = {"source_size": (1280, 720), "target_size": (1024, 512), "arch": "resnet101"}
RULES = {"paper": {}, "released": {"gate": "released", "fill_rule": "full"}}


def steps() -> dict[str, dict[str, int]]:
    """Of a steady step of the tests' small networks."""
    result = {}
    for deterministic, mode, precision, setting in itertools.product((True, False), MODES, PRECISIONS, SETTINGS):
        found = step_of(setting, mode, precision, deterministic)
        row = numbers(found, mode) | ({"violations": found.violations} if found.violations else {})
        result[case_name(setting, mode, precision, deterministic)] = row
        print(case_name(setting, mode, precision, deterministic), row, flush=True)
    return result


def by_name(counts: Counter) -> dict[str, int]:
    """The most frequent first."""
    names: Counter = Counter()
    for (kind, name), number in counts.items():
        if kind in ("kernel", "library", "triton", "memcpy", "memset"):
            names[f"{kind} {stub_gpu.short(name)}".strip()] += number
    return dict(sorted(names.items(), key=lambda item: (-item[1], item[0])))


def counted(run: Callable[[], Any]) -> stub_gpu.Seen:
    """Of a second call: the first one allocates."""
    run()
    stub_gpu.reset()
    run()
    return stub_gpu.seen()


def matching() -> dict[str, Any]:
    """Matching alone, eager, of both domains with the gradient, at the sizes of the paper's feature maps in bf16."""
    result = {}
    for deterministic, (rules, more) in itertools.product((True, False), RULES.items()):
        torch.manual_seed(0)
        module = StuffInstanceMatching(2048, STUFF, THINGS, **more).to(CUDA)
        classify = torch.nn.Linear(2048, 19).to(CUDA)
        source, target = (
            torch.empty(1, 2048, *size, device=CUDA, dtype=torch.bfloat16, requires_grad=True).to(
                memory_format=torch.channels_last
            )
            for size in ((91, 161), (65, 129))
        )
        logits = [torch.empty(1, 19, *x.shape[2:], device=CUDA) for x in (source, target)]
        labels = torch.zeros(1, 720, 1280, dtype=torch.uint8, device=CUDA)

        def part(
            module=module, classify=classify, source=source, target=target, logits=logits, labels=labels
        ) -> dict[str, Callable]:
            return {
                "remember": lambda: module.remember(source.detach(), correct_labels(logits[0], labels), classify),
                "match": lambda: sum(module(target, predicted_labels(logits[1], None), classify)).backward(),
            }

        with determinism(deterministic):
            for name, run in part().items():
                found = counted(run)
                row = numbers(found, "eager") | {"by_name": by_name(found.counts)}
                result[f"{name}, {rules} rules" + ("" if deterministic else ", not deterministic")] = row
    return result


class Pictures(torch.utils.data.Dataset):
    """A data set of one picture, many times."""

    def __init__(self, number: int, size: tuple[int, int]):
        self.number, self.size = number, size
        self.names = [str(i) for i in range(number)]

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> tuple:
        image = torch.zeros(3, *self.size, dtype=torch.uint8)
        return image, torch.zeros(self.size, dtype=torch.uint8), self.names[i]


def per_image(run: Callable[[Pictures], Any], size: tuple[int, int]) -> dict[str, Any]:
    """What an image more takes."""
    run(Pictures(1, size))
    seen = []
    for number in (2, 4):
        stub_gpu.reset()
        run(Pictures(number, size))
        seen.append(stub_gpu.seen())
    more = stub_gpu.Seen(counts=Counter({key: (n - seen[0].counts[key]) // 2 for key, n in seen[1].counts.items()}))
    return numbers(more, "eager") | {"by_name": {name: n for name, n in by_name(more.counts).items() if n}}


def images() -> dict[str, Any]:
    """Evaluation and pseudo labels with ResNet-18, an image more of 256x128."""
    model, size, result = deeplab_v2("resnet18", 19).to(CUDA), (128, 256), {}

    def score(pictures: Pictures) -> None:
        batches = [
            (image[None], [label], [name]) for image, label, name in map(pictures.__getitem__, range(len(pictures)))
        ]
        evaluate(model, batches, range(19), "rgb", CUDA, dtype=torch.bfloat16)

    def label(pictures: Pictures) -> None:
        with tempfile.TemporaryDirectory() as out:
            make_pseudo_labels(model, pictures, Path(out), "rgb", CUDA, class_names=CITYSCAPES.names)

    for deterministic in (True, False):
        with determinism(deterministic):
            for name, run in (("evaluation", score), ("pseudo labels", label)):
                result[name + ("" if deterministic else ", not deterministic")] = per_image(run, size)
    return result


def paper(**how: Any) -> dict[str, Any]:
    """One captured step in bf16 at the paper's size, ResNet-101, batch 1; `how` are settings of how it runs."""
    config = Config(step_mode="graph", precision="bf16", gate="released", fill_rule="full", lr=1e-4, **SIZES, **how)
    model = deeplab_v2(config.arch, 19)
    module = StuffInstanceMatching(model.num_features, STUFF, THINGS, **RULES["released"])
    batch = []
    for width, height in (config.source_size, config.target_size):
        batch += [torch.zeros(1, 3, height, width, dtype=torch.uint8), smooth_labels(1, height, width, scale=64)]
    with determinism(True):
        trainer = Trainer(config, model, Discriminator(19), module, "rgb", CUDA)
        inputs = [x.to(CUDA) for x in batch[:3]]
        found = steady_step(trainer, [inputs])
    kinds: Counter = Counter()
    for (kind, _), number in found.nodes.items():
        kinds[kind] += number
    torch.cuda.synchronize()
    gc.collect()
    memory = {"allocated_mib": torch.cuda.memory_allocated(), "reserved_mib": torch.cuda.memory_reserved()}
    result = numbers(found, "graph") | {"violations": found.violations, "nodes_by_kind": dict(kinds)}
    result |= {name: round(value / 2**20) for name, value in memory.items()}
    return result | {"nodes_by_name": by_name(found.nodes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="result file to write a section of")
    parser.add_argument("--section", default="after", help="its name")
    parser.add_argument("--bounds", action="store_true", help="write the tests' bounds instead")
    parser.add_argument("--fuse", nargs="+", metavar="PART", help="count the step at the paper's size alone, so fused")
    parser.add_argument("--memory", choices=("usual", "low"), default="usual", help="with --fuse")
    arguments = parser.parse_args()
    if not stub_gpu.active() or bool(arguments.file) == arguments.bounds:
        parser.error("needs the stub GPU, and a file or --bounds")

    if arguments.fuse:
        how = {"fuse": tuple(arguments.fuse), "memory": arguments.memory}
        keep(arguments.file, arguments.section, {"torch": torch.__version__, **how, "paper": paper(**how)})
        return
    at_paper_size = None if arguments.bounds else paper()  # first, while nothing else takes memory
    found = {"torch": torch.__version__, "steps": steps(), "matching": matching(), "images": images()}
    if arguments.bounds:
        for row in (*found["matching"].values(), *found["images"].values()):
            del row["by_name"]
        write(found, BOUNDS)
        return
    keep(arguments.file, arguments.section, found | {"paper": at_paper_size})


def state() -> dict[str, Any]:
    """Of the code that was counted."""
    clean = not git("status", "--porcelain", "--untracked-files=no", "--", "simfast", "csrc")
    return {"commit": git("rev-parse", "HEAD") or "unknown", "clean": clean}


def keep(path: Path, section: str, found: dict[str, Any]) -> None:
    """A section of a result file, whose others stay."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content[section] = state() | found
    write(content, path)


def write(content: dict[str, Any], path: Path) -> None:
    """With a row a line, where it fits into one."""

    def one_line(row: re.Match) -> str:
        line = " ".join(row[0].split())
        return line if len(line) < 120 else row[0]

    text = re.sub(r"{[^{}]*}", one_line, json.dumps(content, indent=1))
    fresh = path.with_suffix(".new")
    fresh.write_text(text + "\n")
    os.replace(fresh, path)
    print(path)


if __name__ == "__main__":
    main()
