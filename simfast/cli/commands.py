"""The commands of `simfast`: what each reads from the command line, and what it calls."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from simfast.analysis.rows import DECIDED
from simfast.cli.data_commands import HELD_OUT, START, TARGET, CheckData, ClassList, Prepare
from simfast.config import Config
from simfast.config.config import names
from simfast.config.settings import Data

# What takes long to import is imported where a command runs: help does without.
if TYPE_CHECKING:
    from simfast.models.restore import Restored

log = logging.getLogger("simfast")

Checkpoint = Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
EVERYTHING = tuple(names(Config))
_NETWORK = ("classes", "convention", "head_dilations", "resnet_style", "ema", "device", "workers")


def _restore(path: Path, config: Config) -> "Restored":
    """The network of a run folder or a checkpoint, on the device that the settings name."""
    from simfast.models import checkpoint
    from simfast.models.restore import restore_model
    from simfast.runtime.environment import pick_device

    convention = None if config.convention == "auto" else config.convention
    path = checkpoint.resolve(path, "best.pt")
    device = pick_device(config.device)
    style = None if config.resnet_style == "auto" else config.resnet_style
    said = {"head_dilations": config.head_dilations, "convention": convention, "resnet_style": style}
    return restore_model(path, **said, classes=config.classes, ema=config.ema, device=device)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Adapt a network from a labelled source to an unlabelled target.

    By stuff and instance matching on top of an adversarial loss; without a setting, on the embedded `streets`. A
    setting counts where it is given here, else in --config, else in --preset; with --resume, the run's own come first.

    N processes, each with a batch and a GPU of its own: `torchrun --nproc-per-node N -m simfast train ...`
    """

    READS: ClassVar[Sequence[str]] = EVERYTHING

    config: Config

    def run(self) -> dict[str, Any]:
        from simfast.training.run import run

        return run(self.config)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a network on held-out images at the labels' own resolution.

    IoU of each class, and their means over the classes asked for and over the class list's score sets, as far as the
    labels have these classes.
    """

    READS: ClassVar[Sequence[str]] = (
        *(*START, *_NETWORK),
        *(*TARGET, *HELD_OUT, "score_classes", "cache"),
    )

    checkpoint: Checkpoint
    """Run folder (its best checkpoint), checkpoint, or a file of SIM, AdaptSegNet, ADVENT, CLAN, BDL, FDA or DACS."""
    config: Config
    report: Path | None = None
    """JSON file for the scores."""

    def run(self) -> int:
        from simfast.data.loader import evaluation_loader
        from simfast.data.parts import asked_classes, held_out_name, open_part, warn_if_void
        from simfast.inference.evaluate import evaluate
        from simfast.report.scores import evaluation_report, evaluation_text

        config, restored = self.config, _restore(self.checkpoint, self.config)
        held_out = open_part(config, "held-out")
        # What is scored must not ask for the source's files: the held-out labels' classes where nothing else is said.
        auto = config.score_classes == "auto"
        class_ids = held_out.class_ids if auto else asked_classes(config, held_out)
        scores, _ = evaluate(
            restored.model,
            evaluation_loader(held_out, 1, config.workers, restored.device),
            class_ids,
            restored.convention,
            restored.device,
            labelled_ids=held_out.class_ids,
            sets=restored.classes.sets,
        )
        found = evaluation_report(scores, restored.classes, restored.weights, held_out_name(config), len(held_out))
        warn_if_void(found["scores"], held_out)
        _tell(found, evaluation_text(found, restored.classes), self.report)
        return 0


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Label pictures: OUT/labels (ids as PNG), OUT/colour, OUT/overlay, and OUT/classes.yaml, which names the ids."""

    READS: ClassVar[Sequence[str]] = (*START, *_NETWORK, "target_size")

    checkpoint: Checkpoint
    """Run folder (its best checkpoint), checkpoint, or a file of SIM, AdaptSegNet, ADVENT, CLAN, BDL, FDA or DACS."""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE ...", help_behavior_hint="(required)")]
    """Pictures of any size, and folders of them."""
    config: Config
    out: Path = Path("predictions")
    """Folder to write to."""
    input_size: tuple[int, int] | None = None
    """Width and height that the network sees. Default: the area of --target-size in the picture's own proportions."""
    label_ids: bool = False
    """Write the first of each class's ids in the class list instead of its place there: of Cityscapes, the label ids
    that its server wants."""

    def run(self) -> int:
        from simfast.inference.predict import predict

        restored = _restore(self.checkpoint, self.config)
        skipped = predict(
            restored.model,
            restored.convention,
            self.inputs,
            self.out,
            classes=restored.classes,
            target_size=self.config.target_size,
            size=self.input_size,
            device=restored.device,
            label_ids=self.label_ids,
            workers=max(1, self.config.workers),
        )
        log.info("%s: labels/, colour/, overlay/, classes.yaml", self.out)
        return int(bool(skipped))


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Label the target's training images with a trained network where it is confident.

    Eq. 9 and section 6.2. Stage 2 does so itself, where it is given --stage1.
    """

    READS: ClassVar[Sequence[str]] = (
        *(*START, "recipe", *_NETWORK),
        *("target", "target_root", "target_labels", "target_split", "target_size", "cache"),
        *("pseudo_cap", "pseudo_softmax", "skip_bad_files"),
    )

    checkpoint: Checkpoint
    """Run folder (its best checkpoint), checkpoint, or a file of SIM, AdaptSegNet, ADVENT, CLAN, BDL, FDA or DACS."""
    out: Path
    """Folder of the labels."""
    config: Config

    def run(self) -> int:
        from simfast.training.stage2 import label_target

        restored = _restore(self.checkpoint, self.config)
        made = label_target(self.config, restored, self.out, restored.device)
        log.info("%s: %d label maps and thresholds.json", self.out, made["images"])
        return 0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Write a network's weights as a safetensors file, whatever file they come from.

    It holds the network alone, no state of a training, and says what network it is: every command takes it as a
    checkpoint, training as initial weights, and other programs read it without running code from it.
    """

    READS: ClassVar[Sequence[str]] = (*(name for name in _NETWORK if name not in ("device", "workers")),)

    checkpoint: Checkpoint
    """Run folder (its best checkpoint), checkpoint, or a file of SIM, AdaptSegNet, ADVENT, CLAN, BDL, FDA or DACS."""
    file: Annotated[Positional[Path], arg(metavar="FILE.safetensors")]
    """File to write."""
    config: Config

    def run(self) -> int:
        from simfast.models.restore import save_weights

        restored = _restore(self.checkpoint, dataclasses.replace(self.config, device="cpu"))
        save_weights(restored, self.file)
        log.info("%s: %d tensors, %s input", self.file, len(restored.model.state_dict()), restored.convention)
        return 0


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Say what matching and the losses do at a run's checkpoint, without training.

    Banks, regions, distances, gradients, over training pairs in the loader's order. Labels of the target's training
    images, where there are any, serve for purity and for comparing gradients here; training does not see them.
    """

    CHECKPOINT: ClassVar[str] = "last.pt"
    READS: ClassVar[Sequence[str]] = (
        *START,
        *(name for name in names(Data) if name not in (*HELD_OUT, "report_split", "score_classes")),
        *("lambda_seg", "lambda_adv", "lambda_ci", "lambda_ci_stage2", "adversary"),
        *("gate", "fill_rule", "bank_dtype", "match_pseudo_labels", "ops"),
        *("precision", "batch_size", "seed", "device", "pseudo_labels"),
    )

    checkpoint: Checkpoint
    """Run folder (its last checkpoint) or a checkpoint of a run."""
    config: Config
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
        from simfast.analysis.diagnose import diagnose, diagnosis_text
        from simfast.models import checkpoint
        from simfast.runtime.environment import pick_device

        found = diagnose(
            checkpoint.resolve(self.checkpoint, self.CHECKPOINT),
            self.config,
            pick_device(self.config.device),
            pairs=self.pairs,
            gradient_pairs=self.gradient_pairs,
            bank_images=self.bank_images,
            fresh_banks=self.fresh_banks,
        )
        _tell(found, diagnosis_text(found), self.report)
        return 0


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train rows of the paper's tables with several seeds, and write their table beside the paper's figures.

    Rows: source-only, aa, aa+it, aa+sim, aa+it+sim, aa+sim+ssl, aa+it+sim+ssl, target-only; each may carry settings of
    its own, as in "aa+sim,lambda_ci=0.1". aa is adversarial adaptation, it image transfer (--source-images or
    --transfer; fda where neither is given), ssl stage 2.

    Groups: modules (Tables 2 and 6), lambda_ci (Table 3), w (Table 4).

    The same command continues what was interrupted, also with other settings as far as train --resume takes them.
    """

    READS: ClassVar[Sequence[str]] = tuple(name for name in EVERYTHING if name not in DECIDED)

    out: Path
    """Folder of all runs."""
    config: Config
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
        from simfast.analysis.ablate import check_data, run_all
        from simfast.analysis.ablation_table import summarise, table
        from simfast.analysis.rows import plan

        config = dataclasses.replace(self.config, out=self.out)
        runs = plan(list(self.rows), list(self.seeds), config, self.warm_up)
        check_data(runs)
        failed = run_all(runs, jobs=self.jobs)
        log.info("\n%s\n\n%s: ablation.md, ablation.json, curves.png, panel.png", table(summarise(runs)), self.out)
        return int(bool(failed))


def _tell(found: dict[str, Any], text: str, report: Path | None) -> None:
    """What was found, for the terminal, and as JSON where a file is named."""
    from simfast.runtime.files import write_text

    log.info("%s", text)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_text(report, json.dumps(found, indent=1) + "\n")


COMMANDS: dict[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "pseudo-labels": PseudoLabels,
    "weights": Weights,
    "prepare": Prepare,
    "check-data": CheckData,
    "classes": ClassList,
    "diagnose": Diagnose,
    "ablate": Ablate,
}
