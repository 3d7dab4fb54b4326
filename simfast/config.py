"""The trainer's settings: one frozen dataclass, and presets."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic


def _require(holds: bool, name: str, rule: str, came: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: {rule}, got {came!r}")


@dataclass(frozen=True)
class Config:
    """Adapt a segmentation network from a labelled source to an unlabelled target by stuff and instance matching.

    Order of precedence: this command line, then --config, then --preset. With --resume, the stored settings come first.
    """

    stage: Literal[1] = 1
    """Training stage: 1 trains on source labels and adapts (Eq. 12)."""
    method: Literal["source-only", "aa", "aa+sim", "target-only"] = "aa+sim"
    """Source labels alone; plus adversarial adaptation; plus stuff and instance matching; or target labels alone."""
    preset: Literal["auto", "streets", "streets-gpu", "camvid", "paper"] = "auto"
    """Named starting point. auto: streets on a CPU, streets-gpu on a GPU."""
    config: Path | None = None
    """YAML file of settings, named as here (with - or _)."""
    out: Path | None = None
    """Run folder. Default: a new one under runs/."""
    resume: Path | None = None
    """Run folder or checkpoint to continue, with its own settings."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. auto: the GPU where there is one."""
    seed: int = 0
    """Seed of initial weights, data order and flips."""

    source: Literal["streets", "camvid", "folder"] = "folder"
    """Labelled data set."""
    source_root: Path | None = None
    """Its folder (streets is embedded and has none)."""
    source_split: str = "train"
    """Its part to train on."""
    source_ids: Path | None = None
    """YAML or JSON map {raw id: train id} of a folder's labels. Default: they are Cityscapes train ids."""
    source_size: tuple[int, int] = (1280, 720)
    """Width and height of source images in training, pixels."""
    target: Literal["streets", "camvid", "folder"] = "folder"
    """Unlabelled data set to adapt to, and to evaluate on."""
    target_root: Path | None = None
    """Its folder."""
    target_split: str = "train"
    """Its part to adapt to."""
    target_ids: Path | None = None
    """Like source-ids, for its evaluation labels."""
    target_size: tuple[int, int] = (1024, 512)
    """Width and height of target images in training and evaluation, pixels; scored at the labels' own size."""
    eval_split: str = "val"
    """The target's part to evaluate on."""
    flip: bool = False
    """Mirror half of the training images."""
    workers: int = 4
    """Processes that read data; 0 = the trainer's own."""

    arch: Literal["resnet18", "resnet50", "resnet101", "vgg16"] = "resnet101"
    """Backbone of DeepLabV2 (section 5.1)."""
    weights: Path | None = None
    """Initial weights: AdaptSegNet, SIM, torchvision or our own. Default: random."""
    convention: Literal["auto", "bgr", "rgb"] = "auto"
    """Input the weights expect: BGR minus caffe's mean, or RGB with ImageNet's. auto: what their file tells."""
    head_dilations: tuple[int, ...] = (6, 12, 18, 24)
    """Dilations of the head's summed convolutions (released code: 6 12)."""
    batch_norm: Literal["train", "frozen"] = "train"
    """Batch statistics in training, or the stored ones."""

    lambda_seg: float = 1.0
    """Weight of the segmentation loss (Eq. 12)."""
    lambda_adv: float = 0.001
    """Weight of the adversarial loss (Eq. 12, section 5.1)."""
    lambda_ci: float = 0.01
    """Weight of stuff and instance matching (Eq. 12); belongs to L1 distances divided by the channels."""
    lambda_d: float = 1.0
    """Weight of the discriminator's loss (Eq. 12; the released code halves both terms: 0.5)."""
    stuff_rows: int = 50
    """w: remembered vectors of a stuff class (Eq. 5); a thing class remembers w * z."""
    max_instances: int = 10
    """z: the most regions of a thing class in an image (Algorithm 1)."""
    gate: Literal["none", "released"] = "none"
    """Whether the head must assign a pooled vector to its own class for it to count (released code)."""
    fill_rule: Literal["any", "full"] = "any"
    """A class takes part in matching from its first vector on, or once its ring has wrapped (released code)."""
    ops: Literal["auto", "reference", "fused"] = "auto"
    """Region and matching operations: pure PyTorch, or the compiled kernels. auto: compiled where they are built."""

    batch_size: int = 1
    """Images of each domain in a step."""
    steps: int = 200_000
    """Steps to train."""
    schedule_steps: int = 250_000
    """Length of the poly schedule, steps; at least --steps."""
    lr: float = 2.5e-4
    """Learning rate of the backbone."""
    head_lr_factor: float = 10.0
    """The head's learning rate over the backbone's (released code: 10, for a pretrained backbone)."""
    lr_d: float = 1e-4
    """Learning rate of the discriminator (Adam)."""
    power: float = 0.9
    """Power of the poly schedule, for both."""
    momentum: float = 0.9
    """SGD momentum."""
    nesterov: bool = True
    """Nesterov momentum (the released code has none)."""
    weight_decay: float = 5e-4
    """SGD weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's betas, for the discriminator."""

    log_every: int = 100
    """Steps between two readings of the losses."""
    eval_every: int = 5000
    """Steps between two evaluations, each with a checkpoint and a panel picture."""
    panel_images: int = 4
    """Held-out images in the panel picture; 0 = no picture."""
    deterministic: bool = True
    """Same seed, same bits, also on a GPU."""

    def __post_init__(self):
        for name in ("batch_size", "steps", "log_every", "eval_every", "stuff_rows", "max_instances"):
            _require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        for name in (
            "workers",
            "panel_images",
            "seed",
            "weight_decay",
            "lambda_seg",
            "lambda_adv",
            "lambda_ci",
            "lambda_d",
        ):
            _require(getattr(self, name) >= 0, name, "must not be negative", getattr(self, name))
        for name in ("lr", "lr_d", "head_lr_factor"):
            _require(getattr(self, name) > 0, name, "must be positive", getattr(self, name))
        for name in ("source_size", "target_size"):
            _require(min(getattr(self, name)) >= 32, name, "must be at least 32 x 32", getattr(self, name))
        _require(0 <= self.momentum < 1, "momentum", "must be in [0, 1)", self.momentum)
        _require(not self.nesterov or self.momentum > 0, "momentum", "must be positive for nesterov", self.momentum)
        _require(
            len(self.head_dilations) > 0 and min(self.head_dilations) >= 1,
            "head_dilations",
            "must be positive",
            self.head_dilations,
        )
        _require(
            self.schedule_steps >= self.steps,
            "schedule_steps",
            f"must be at least steps ({self.steps})",
            self.schedule_steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for YAML and checkpoints."""
        return pydantic.TypeAdapter(Config).dump_python(self, mode="json")

    def recipe(self) -> dict[str, Any]:
        """`to_dict` without what belongs to one run alone: a YAML file that --config takes."""
        return {key: value for key, value in self.to_dict().items() if key not in COMMAND_LINE_ONLY}

    @staticmethod
    def from_dict(settings: dict[str, Any], where: str, base: "Config | None" = None) -> "Config":
        """`base` with some settings replaced.

        Raises:
            ValueError: an unknown key (naming the closest one) or a bad value, with `where` it came from.
        """
        names = [field.name for field in dataclasses.fields(Config)]
        for key in settings:
            if key not in names:
                closest = difflib.get_close_matches(key, names, n=1, cutoff=0)
                raise ValueError(f"{where}: unknown key {key!r}; the closest one is {closest[0]!r}")
        try:
            return pydantic.TypeAdapter(Config).validate_python((base or Config()).to_dict() | settings)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {key + ': ' if key else ''}{first['msg']}, got {first['input']!r}") from None


_STREETS = Config(
    source="streets",
    source_split="source",
    target="streets",
    eval_split="test",
    source_size=(160, 120),
    target_size=(160, 120),
    flip=True,
    workers=0,
    arch="resnet18",
    batch_size=2,
    steps=250,
    schedule_steps=350,
    # From random weights: batch norm makes the backbone want a large rate, while the head sees large features.
    lr=0.05,
    head_lr_factor=0.002,
    log_every=10,
    eval_every=50,
)
PRESETS = {
    # A few minutes on two CPU cores.
    "streets": _STREETS,
    "streets-gpu": dataclasses.replace(
        _STREETS,
        source_size=(320, 240),
        target_size=(320, 240),
        workers=4,
        batch_size=8,
        steps=4000,
        schedule_steps=5000,
        log_every=50,
        eval_every=500,
    ),
    # A user's own labelled folder -> CamVid, from ImageNet-like VGG16 weights.
    "camvid": Config(
        source="folder",
        target="camvid",
        source_size=(480, 360),
        target_size=(480, 360),
        flip=True,
        arch="vgg16",
        steps=20_000,
        schedule_steps=25_000,
        eval_every=1000,
    ),
    "paper": Config(),
}

COMMAND_LINE_ONLY = {"config", "out", "resume"}
# What may differ between a run and its continuation: nothing that changes the bits of the steps in between.
FREE_ON_RESUME = COMMAND_LINE_ONLY | {"workers", "log_every", "eval_every", "panel_images", "steps"}
