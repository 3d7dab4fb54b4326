"""The command `simfast`: what is done around a training run. Every command takes the settings of train.py as well."""

import dataclasses
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

# CPU threads that wait by spinning make a step several times slower as soon as another program wants a core.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Deterministic matrix products on a GPU need this before the first one (NVIDIA cuBLAS documentation).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if os.environ.get("RANK", "0") != "0":  # one progress bar for all processes of torchrun
    os.environ["TQDM_DISABLE"] = "1"

from tyro.conf import OmitArgPrefixes, Positional

from simfast.analysis import ablate
from simfast.analysis.diagnose import diagnose, diagnosis_text
from simfast.cli.parse import parse, parse_command
from simfast.config import Config
from simfast.config.presets import RECIPES
from simfast.data import open_dataset
from simfast.data.check import check_part, report_text
from simfast.data.classes import CLASS_SETS
from simfast.data.loader import evaluation_loader
from simfast.data.parts import arguments_of, open_part
from simfast.data.prepare import prepare
from simfast.inference.evaluate import evaluate
from simfast.inference.predict import predict
from simfast.models import checkpoint
from simfast.models.restore import Restored, restore_model
from simfast.models.weights import read_weights
from simfast.report.scores import evaluation_report, evaluation_text
from simfast.runtime.console import set_up_logging
from simfast.runtime.environment import pick_device
from simfast.runtime.files import write_text
from simfast.training.run import run
from simfast.training.stage2 import label_target

log = logging.getLogger("simfast")
Settings = Annotated[Config, OmitArgPrefixes]


def main(argv: list[str] | None = None) -> None:
    """`simfast COMMAND ...`; without a known command, says which there are.

    Raises:
        SystemExit: 0 if all is well, else 1 with what went wrong; 2 for a bad command line; 128 + the signal's number.
    """
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    if name not in COMMANDS:
        lines = [f"  {key:14} {(command.__doc__ or '').split(chr(10))[0]}" for key, command in COMMANDS.items()]
        print("\n".join(["usage: simfast COMMAND ...; simfast COMMAND --help explains it", "", *lines]))
        raise SystemExit(0 if name in ("--help", "-h") else f"simfast: unknown command {name!r}")
    if name == "train":
        train(rest)
        return
    set_up_logging()
    try:
        raise SystemExit(_parse(COMMANDS[name], rest).run())
    except (ValueError, OSError) as error:
        raise SystemExit(f"simfast {name}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def train(argv: list[str]) -> dict[str, Any]:
    """What `simfast train` does, and its result."""
    try:
        return run(parse(argv))
    except (ValueError, OSError) as error:
        raise SystemExit(f"simfast train: {error}") from error
    except KeyboardInterrupt:  # where no step is to be finished, or for the second time
        raise SystemExit(130) from None


def _parse(command: type, argv: list[str]) -> Any:
    """The command with its settings: those of the checkpoint that it is about, where that holds any, come first."""
    stored = None
    names = {field.name for field in dataclasses.fields(command)}
    if "checkpoint" in names and argv and not {"-h", "--help"} & set(argv):
        if argv[0].startswith("-"):  # else the settings stored with it would quietly not count
            raise ValueError(f"checkpoint: must come before the options, got {argv[0]} first")
        found = read_weights(checkpoint.resolve(Path(argv[0]), getattr(command, "default_name", "best.pt"))).settings
        # A file of the released code has the network of the released recipe.
        released = RECIPES["released"] | {"recipe": "released"}
        stored = Config.from_dict(released if found is None else found, argv[0])
    return parse_command(command, argv, stored)


def _restore(path: Path, config: Config) -> Restored:
    """The network of a run folder or a checkpoint, on the device that the settings name."""
    convention = None if config.convention == "auto" else config.convention
    dilations, device = config.head_dilations, pick_device(config.device)
    path = checkpoint.resolve(path, "best.pt")
    return restore_model(path, head_dilations=dilations, convention=convention, device=device)


@dataclass(frozen=True)
class Prepare:
    """Fill --cache with resized images and labels, so that training decodes no PNG.

    Give the settings that training will be given. What is there already is kept.
    """

    config: Settings

    def run(self) -> int:
        config = self.config
        if config.cache is None:
            raise ValueError("cache: must name the folder to fill, got none")
        for part, arguments in arguments_of(config).items():
            log.info("%s: %s", part, prepare(open_dataset(**arguments), config.cache, config.workers))
        log.info("train with the same settings and --cache %s", config.cache)
        return 0


@dataclass(frozen=True)
class CheckData:
    """Read every file that training with these settings would read, and list what is missing or broken."""

    config: Settings

    def run(self) -> int:
        config = self.config
        parts = arguments_of(config).items()
        found = {part: check_part(**arguments, workers=config.workers, cache=config.cache) for part, arguments in parts}
        log.info("%s", report_text(found))
        return int(any(part.problems for part in found.values()))


@dataclass(frozen=True)
class PseudoLabels:
    """Label the target's training images with a trained network where it is confident (Eq. 9, section 6.2)."""

    checkpoint: Positional[Path]
    """Run folder (its best checkpoint), checkpoint, or a released SIM or AdaptSegNet file."""
    config: Settings
    """--out is the folder of the labels."""

    def run(self) -> int:
        config = self.config
        if config.out is None:
            raise ValueError("out: must name the folder of the pseudo labels, got none")
        made = label_target(config, _restore(self.checkpoint, config), config.out, pick_device(config.device))
        log.info("%s: %d label maps and thresholds.json", config.out, made["images"])
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Score a network on the held-out part at the labels' own resolution: IoU per class; means over 19, 16 and 13."""

    checkpoint: Positional[Path]
    """Run folder (its best checkpoint), checkpoint, or a released SIM or AdaptSegNet file."""
    config: Settings
    report: Path | None = None
    """JSON file for the scores."""

    def run(self) -> int:
        config = self.config
        if self.report is not None:
            self.report.parent.mkdir(parents=True, exist_ok=True)
        restored = _restore(self.checkpoint, config)
        held_out = open_part(config, "held-out")
        # What is scored must not ask for the source's files: the held-out labels' classes where nothing else is said.
        class_ids = held_out.class_ids if config.score_classes == "auto" else CLASS_SETS[config.score_classes]
        scores, _ = evaluate(
            restored.model,
            evaluation_loader(held_out, 1, config.workers, pick_device(config.device)),
            class_ids,
            restored.convention,
            pick_device(config.device),
            labelled_ids=held_out.class_ids,
        )
        data = f"{config.target} {config.eval_split}"
        found = evaluation_report(scores, restored.weights, data, len(held_out))
        log.info("%s", evaluation_text(found))
        if self.report is not None:
            write_text(self.report, json.dumps(found, indent=1) + "\n")
        return 0


@dataclass(frozen=True)
class Predict:
    """Label pictures: OUT/labels (ids as PNG), OUT/colour (Cityscapes' palette) and OUT/overlay.

    --out is the folder to write to; default: predictions.
    """

    checkpoint: Positional[Path]
    """Run folder (its best checkpoint), checkpoint, or a released SIM or AdaptSegNet file."""
    inputs: Positional[tuple[Path, ...]]
    """Pictures of any size, and folders of them."""
    config: Settings
    input_size: tuple[int, int] | None = None
    """Width and height that the network sees. Default: the area of --target-size in the picture's own proportions."""
    label_ids: bool = False
    """Write Cityscapes' label ids, as its server wants them, instead of train ids."""

    def run(self) -> int:
        config = self.config
        restored = _restore(self.checkpoint, config)
        out = config.out or Path("predictions")
        skipped = predict(
            restored.model,
            restored.convention,
            self.inputs,
            out,
            target_size=config.target_size,
            size=self.input_size,
            device=pick_device(config.device),
            label_ids=self.label_ids,
            workers=max(1, config.workers),
        )
        log.info("%s: labels/, colour/, overlay/", out)
        return int(bool(skipped))


@dataclass(frozen=True)
class Diagnose:
    """Say what matching and the losses do at a run's checkpoint: banks, regions, distances, gradients. Trains nothing.

    Over training pairs in the loader's order. Labels of the target's training images, where there are any, serve for
    purity and for comparing gradients here; training does not see them.
    """

    default_name: ClassVar[str] = "last.pt"

    checkpoint: Positional[Path]
    """Run folder (its last checkpoint) or a checkpoint of train.py."""
    config: Settings
    pairs: int = 50
    """Source and target images to go over; whole batches."""
    gradient_pairs: int = 10
    """The first of them, of which gradients are computed."""
    bank_images: int = 200
    """Source images that fill the banks of a run that has none."""
    fresh_banks: bool = False
    """Fill them anew in a run that has its own, too."""
    report: Path | None = None
    """JSON file for all of it."""

    def run(self) -> int:
        if self.report is not None:
            self.report.parent.mkdir(parents=True, exist_ok=True)
        found = diagnose(
            checkpoint.resolve(self.checkpoint, self.default_name),
            self.config,
            pick_device(self.config.device),
            pairs=self.pairs,
            gradient_pairs=self.gradient_pairs,
            bank_images=self.bank_images,
            fresh_banks=self.fresh_banks,
        )
        log.info("%s", diagnosis_text(found))
        if self.report is not None:
            write_text(self.report, json.dumps(found, indent=1) + "\n")
        return 0


@dataclass(frozen=True)
class Ablate:
    """Train rows of the paper's tables with several seeds, and write their table beside the paper's figures.

    Rows: source-only, aa, aa+it, aa+sim, aa+it+sim, aa+sim+ssl, aa+it+sim+ssl, target-only; each may carry settings of
    its own, as in "aa+sim,lambda_ci=0.1". Groups: modules (Tables 2 and 6), lambda_ci (Table 3), w (Table 4). "it" is
    --source-images or --transfer; fda where neither is given. Call again to continue; --out is the folder of all runs.
    """

    config: Settings
    rows: tuple[str, ...] = ("modules",)
    """Rows and groups of rows."""
    seeds: tuple[int, ...] = (0,)
    """One run a row each."""
    warm_up: int = 0
    """Steps of source-only training that the rows of a seed share, for a short step budget: they start from it, and
    --steps follow. target-only trains that much longer."""
    jobs: int = 1
    """Runs at the same time."""

    def run(self) -> int:
        config = self.config
        if config.out is None:
            raise ValueError("out: must name the folder of the runs, got none")
        runs = ablate.plan(list(self.rows), list(self.seeds), config, self.warm_up)
        ablate.check_data(runs)
        failed = ablate.run_all(runs, jobs=self.jobs)
        log.info(
            "\n%s\n\n%s: ablation.md, ablation.json, curves.png, panel.png",
            ablate.table(ablate.summarise(runs)),
            config.out,
        )
        return int(bool(failed))


COMMANDS: dict[str, type] = {
    "prepare": Prepare,
    "check-data": CheckData,
    "pseudo-labels": PseudoLabels,
    "evaluate": Evaluate,
    "predict": Predict,
    "diagnose": Diagnose,
    "ablate": Ablate,
}
