"""The trainer's settings: one frozen dataclass."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


def _require(holds: bool, name: str, rule: str, came: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: {rule}, got {came!r}")


DataSet = Literal["streets", "camvid", "folder", "gta5", "synthia", "cityscapes"]


@dataclass(frozen=True)
class Config:
    """Adapt a segmentation network from a labelled source to an unlabelled target by stuff and instance matching.

    Order of precedence: this command line, then --config, then --preset. With --resume, the stored settings come first.
    """

    stage: Literal[1, 2, "all"] = 1
    """1 trains on source labels and adapts (Eq. 12). 2 starts anew with pseudo labels of the target as well (Eq. 13).
    all: one after the other, in OUT/stage1 and OUT/stage2."""
    method: Literal["source-only", "aa", "aa+sim", "target-only"] = "aa+sim"
    """Source labels alone; plus adversarial adaptation; plus stuff and instance matching; or target labels alone."""
    preset: Literal["auto", "streets", "streets-gpu", "camvid", "camvid-cpu", "gta5", "synthia"] = "auto"
    """Named starting point; gta5 and synthia are the paper's. auto: streets on a CPU, streets-gpu on a GPU."""
    recipe: Literal["paper", "released"] = "paper"
    """Sets every option in which the authors' released code differs from what they wrote."""
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

    source: DataSet = "gta5"
    """Labelled data set."""
    source_root: Path | None = None
    """Its folder (streets is embedded and has none)."""
    source_split: str = "train"
    """Its part to train on."""
    source_ids: Path | None = None
    """YAML or JSON map {raw id: train id} of a folder's labels. Default: they are Cityscapes train ids."""
    source_images: Path | None = None
    """Folder of transferred source images under the source's own names, used in their place (image transfer, IT)."""
    transfer: Literal["none", "fda", "lab"] = "none"
    """Image transfer in the step itself, towards the target images of the batch: swap of low-frequency amplitudes
    (FDA, Yang and Soatto 2020), or mean and deviation in CIE Lab (Reinhard et al. 2001)."""
    fda_beta: float = 0.01
    """Half-width of FDA's window, as a share of the image's shorter side."""
    source_size: tuple[int, int] = (1280, 720)
    """Width and height of source images in training, pixels."""
    target: DataSet = "cityscapes"
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
    report_split: str | None = None
    """The target's part to score once more after training, with the last and the best checkpoint, where --eval-split
    has served to choose. Default: none."""
    score_classes: Literal["auto", 13, 16, 19] = "auto"
    """Classes whose mean IoU decides which checkpoint is best. auto: those that source and target both label."""
    cache: Path | None = None
    """Folder that `simfast prepare` filled for these settings; the data sets' own files are then not read."""
    flip: bool = False
    """Mirror half of the training images."""
    workers: int = 4
    """Processes that read data, or threads where a cache has it all; 0 = the trainer's own."""

    arch: Literal["resnet18", "resnet50", "resnet101", "vgg16"] = "resnet101"
    """Backbone of DeepLabV2 (section 5.1)."""
    weights: Path | None = None
    """Initial weights: AdaptSegNet, SIM, torchvision or our own. Default: random."""
    convention: Literal["auto", "bgr", "rgb"] = "auto"
    """Input the weights expect: BGR minus caffe's mean, or RGB with ImageNet's. auto: what their file tells."""
    head_dilations: tuple[int, ...] = (6, 12, 18, 24)
    """Dilations of the head's summed convolutions (released code: 6 12)."""
    batch_norm: Literal["train", "frozen", "per-domain"] = "train"
    """Batch statistics in training; or the stored ones; or batch statistics of which the target's alone are stored."""

    lambda_seg: float = 1.0
    """Weight of the segmentation loss (Eq. 12)."""
    lambda_adv: float = 0.001
    """Weight of the adversarial loss (Eq. 12, section 5.1)."""
    lambda_ci: float = 0.01
    """Weight of stuff and instance matching (Eq. 12); belongs to L1 distances divided by the channels."""
    lambda_ci_stage2: float = 0.01
    """The same in stage 2 (Eq. 13; released code: 0.001)."""
    lambda_d: float = 1.0
    """Weight of the discriminator's loss (Eq. 12; the released code halves both terms: 0.5)."""
    adversary: Literal["bce", "ls-gan"] = "bce"
    """Adversarial loss: binary cross entropy (Eq. 2, 3), or least squares (Mao et al. 2017)."""
    stuff_rows: int = 50
    """w: remembered vectors of a stuff class (Eq. 5); a thing class remembers w * z."""
    max_instances: int = 10
    """z: the most regions of a thing class in an image (Algorithm 1)."""
    gate: Literal["none", "released"] = "none"
    """Whether the head must assign a pooled vector to its own class for it to count (released code)."""
    fill_rule: Literal["any", "full"] = "any"
    """A class takes part in matching from its first vector on, or once its ring has wrapped (released code)."""
    bank_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What remembered vectors are stored in. bfloat16 halves the memory and the time to read it; a distance moves by at
    most 1/256 of the remembered vector's L1 norm. auto: bfloat16 where features are of 16 bits, that is in bf16 and
    fp16 (--precision), else float32."""
    match_pseudo_labels: bool = True
    """In stage 2 a pseudo label replaces the prediction in matching (Eq. 11; the released code does not)."""
    ops: Literal["auto", "reference", "fused"] = "auto"
    """Region and matching operations: pure PyTorch, or the compiled kernels. auto: compiled where they are built."""

    self_training: Literal["none", "online"] = "none"
    """online, beyond the paper: a mean teacher labels target images, on which half of the classes of a source image are
    pasted; the network learns from the mixed images too (DACS, Tranheden et al. 2021)."""
    lambda_mix: float = 1.0
    """Weight of the segmentation loss on mixed images."""
    teacher_decay: float = 0.999
    """What stays of the mean teacher at a step."""
    confidence: float = 0.968
    """A target image's mixed pixels count with the share of its pixels of which the teacher is surer than this."""

    stage1: Path | None = None
    """For stage 2: the run folder of stage 1 (its best checkpoint) or a checkpoint, which makes the pseudo labels."""
    pseudo_labels: Path | None = None
    """For stage 2: folder of pseudo labels; used if complete, else made there. Default: OUT/pseudo-labels."""
    pseudo_cap: float = 0.9
    """Upper bound of a class's confidence threshold, its median confidence (section 6.2)."""
    pseudo_softmax: Literal["labels", "features"] = "labels"
    """Confidence: softmax of the upsampled logits, or softmax at stride 8, then upsampled (released code)."""

    step_mode: Literal["auto", "eager", "compile", "graph", "compile+graph"] = "auto"
    """How a step runs: operator by operator; with networks compiled by torch; as one CUDA graph; or both. auto: a graph
    on a GPU where it can be captured, else eager."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic inside the networks; weights, losses and matching stay fp32 (what is remembered: bank-dtype). auto:
    bf16 on a GPU that has it, else fp32. fp16 scales the losses. fp32 on a GPU is what torch takes for it: convolutions
    by cuDNN multiply in TF32 (11 bits of mantissa) and add in fp32, unless torch.backends.cudnn.allow_tf32 is switched
    off."""
    batch_size: int = 1
    """Images of each domain in a step; with torchrun, of each of its processes."""
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
            "lambda_ci_stage2",
            "lambda_d",
            "lambda_mix",
        ):
            _require(getattr(self, name) >= 0, name, "must not be negative", getattr(self, name))
        for name in ("lr", "lr_d", "head_lr_factor"):
            _require(getattr(self, name) > 0, name, "must be positive", getattr(self, name))
        for name in ("source_size", "target_size"):
            _require(min(getattr(self, name)) >= 32, name, "must be at least 32 x 32", getattr(self, name))
        _require(0 < self.fda_beta < 0.5, "fda_beta", "must be in (0, 0.5)", self.fda_beta)
        _require(0 < self.pseudo_cap <= 1, "pseudo_cap", "must be in (0, 1]", self.pseudo_cap)
        if self.stage == 2:
            rule = "must be stage 1's run folder or a checkpoint for --stage 2 (or give --pseudo-labels)"
            _require(bool(self.stage1 or self.pseudo_labels), "stage1", rule, self.stage1)
        if self.method == "target-only":
            _require(self.stage == 1, "stage", "must be 1 with target-only, which needs no pseudo labels", self.stage)
            _require(self.transfer == "none", "transfer", "must be none with target-only", self.transfer)
        _require(0 <= self.teacher_decay < 1, "teacher_decay", "must be in [0, 1)", self.teacher_decay)
        _require(0 <= self.confidence < 1, "confidence", "must be in [0, 1)", self.confidence)
        if self.self_training == "online":
            rule = "must be none where no target image passes through the network in training"
            _require(self.uses_target, "self_training", rule, self.self_training)
        if self.batch_norm == "per-domain":
            rule = "must be train or frozen where no target image passes through the network in training"
            _require(self.uses_target, "batch_norm", rule, self.batch_norm)
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

    @property
    def adversarial(self) -> bool:
        """Whether the method has a discriminator."""
        return self.method in ("aa", "aa+sim")

    @property
    def uses_target(self) -> bool:
        """Whether target images pass through the network in training, beside the labelled ones."""
        return self.adversarial or self.stage != 1

    @property
    def row(self) -> str:
        """What was trained, in the words of the paper's tables: aa+it-fda+sim+ssl, say."""
        transfers = [] if self.transfer == "none" else [self.transfer]
        transfers += ["images"] if self.source_images else []
        transferred = "".join(f"+it-{name}" for name in transfers)
        first, *rest = self.method.split("+")
        rest += ["online"] if self.self_training == "online" else []
        return "+".join([first + transferred, *rest, *([] if self.stage == 1 else ["ssl"])])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for YAML and checkpoints."""
        import pydantic  # here and below: a step alone does without it

        return pydantic.TypeAdapter(Config).dump_python(self, mode="json")

    def portable(self) -> dict[str, Any]:
        """`to_dict` without what belongs to one run alone: a YAML file that --config takes."""
        return {key: value for key, value in self.to_dict().items() if key not in COMMAND_LINE_ONLY}

    @staticmethod
    def from_dict(settings: dict[str, Any], where: str, base: "Config | None" = None) -> "Config":
        """`base` with some settings replaced; without it, the settings of a run, perhaps an older one.

        Raises:
            ValueError: an unknown key (naming the closest one) or a bad value, with `where` it came from.
        """
        import pydantic

        names = [field.name for field in dataclasses.fields(Config)]
        for key in settings:
            if key not in names:
                closest = difflib.get_close_matches(key, names, n=1, cutoff=0)
                raise ValueError(f"{where}: unknown key {key!r}; the closest one is {closest[0]!r}")
        try:
            before = Config().to_dict() | OLDER_RUNS if base is None else base.to_dict()
            return pydantic.TypeAdapter(Config).validate_python(before | settings)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {key + ': ' if key else ''}{first['msg']}, got {first['input']!r}") from None


# What runs did that do not name the setting, where that is not its default.
OLDER_RUNS = {"bank_dtype": "float32"}
COMMAND_LINE_ONLY = {"config", "out", "resume"}
# What may differ between a run and its continuation: nothing that changes the bits of the steps in between.
FREE_ON_RESUME = COMMAND_LINE_ONLY | {"cache", "workers", "log_every", "eval_every", "panel_images", "steps"}
