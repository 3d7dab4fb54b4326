"""The settings of a run, in groups: each a frozen dataclass with a docstring a field."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simfast.config.classes import CITYSCAPES, Classes

DataSet = Literal["streets", "camvid", "folder", "gta5", "synthia", "cityscapes"]
Fuse = Literal["none", "norms", "cooperative", "products", "weights", "head", "maps", "all"]


@dataclass(frozen=True)
class Run:
    """The run as a whole."""

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
    """YAML file of settings, named as here (with - or _), in these groups or without."""
    out: Path | None = None
    """Run folder. Default: a new one under runs/."""
    resume: Path | None = None
    """Run folder or checkpoint to continue, with its own settings."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the GPU where there is one."""
    seed: int = 0
    """Seed of initial weights, data order and flips."""
    deterministic: bool = True
    """Same seed, same bits, also on a GPU."""
    stage1: Path | None = None
    """For stage 2: the run folder of stage 1 or of both (stage 1's best checkpoint) or a checkpoint, which makes the
    pseudo labels."""
    pseudo_labels: Path | None = None
    """For stage 2: folder of pseudo labels; used if complete, else made there from --stage1. Default:
    OUT/pseudo-labels."""
    pseudo_cap: float = 0.9
    """Upper bound of a class's confidence threshold, its median confidence (section 6.2)."""
    pseudo_softmax: Literal["labels", "features"] = "labels"
    """Confidence: softmax of the upsampled logits, or softmax at stride 8, then upsampled (released code)."""
    log_every: int = 100
    """Steps between two readings of the losses."""
    eval_every: int = 5000
    """Steps between two evaluations, each with a checkpoint and a panel picture."""
    panel_images: int = 4
    """Held-out images in the panel picture; 0 = no picture."""


@dataclass(frozen=True)
class Data:
    """Data sets, and how they are read."""

    classes: Classes = CITYSCAPES
    """What is told apart: cityscapes, camvid, synthia, or a YAML file of classes with names, colours, stuff or thing,
    and what stands for them in label files (`simfast classes cityscapes` prints one to start from)."""
    source: tuple[DataSet, ...] = ("gta5",)
    """Labelled data set (gta5 by default); given several times, a mixture, of which each of these is said once for all
    or once for each, in the same order."""
    source_root: tuple[Path | None, ...] = (None,)
    """Its folder (streets is embedded and has none)."""
    source_split: tuple[str, ...] = ("train",)
    """Its part to train on (train by default), or a list of files (.txt, .lst, .csv)."""
    source_labels: tuple[str | None, ...] = (None,)
    """Where the label maps of a folder's images are: a folder, a pattern as "{dir}/{stem}_L.png", or a replacement in
    the images' paths as "_leftImg8bit -> _gtFine_labelIds". Default: labels/ beside images/, under the same names."""
    source_ids: tuple[Path | None, ...] = (None,)
    """YAML or JSON map {id in its label files: class}, a class by name or number; 255 is don't care. Default: what the
    classes say; of a folder read by the cityscapes classes, that ids are their numbers (train ids)."""
    source_images: tuple[Path | None, ...] = (None,)
    """Folder of transferred source images under the source's own names, used in their place (image transfer, IT)."""
    source_share: tuple[int, ...] = (1,)
    """Of several sources, how many images of each there are to one round of the mixture."""
    transfer: Literal["none", "fda", "lab"] = "none"
    """Image transfer in the step itself, towards the target images of the batch: swap of low-frequency amplitudes
    (FDA, Yang and Soatto 2020; see fda-beta), or mean and deviation in CIE Lab (Reinhard et al. 2001)."""
    fda_beta: float = 0.01
    """Half-width b of FDA's window, as a share of the image's shorter side. Frequencies -b..b are swapped, the result
    is rounded and clipped to 8 bits, as in the authors' demonstration; their training code swaps -b..b-1 and neither
    rounds nor clips, which is 2-4 grey levels away."""
    source_size: tuple[int, int] = (1280, 720)
    """Width and height of source images in training, pixels."""
    target: DataSet = "cityscapes"
    """Unlabelled data set to adapt to, and to evaluate on."""
    target_root: Path | None = None
    """Its folder."""
    target_split: str = "train"
    """Its part to adapt to, or a list of files."""
    target_labels: str | None = None
    """Like source-labels, for its evaluation labels."""
    target_ids: Path | None = None
    """Like source-ids, for its evaluation labels."""
    target_size: tuple[int, int] = (1024, 512)
    """Width and height of target images in training and evaluation, pixels; scored at the labels' own size."""
    eval_split: str = "val"
    """The target's part to evaluate on, or a list of files; none where nothing of it is labelled: then there are no
    scores, but pictures and what can be said without labels, and the best checkpoint is the last."""
    eval_images: Path | None = None
    """Folder of labelled target images to evaluate on in place of eval-split."""
    eval_labels: str | None = None
    """Like source-labels, for eval-images."""
    report_split: str | None = None
    """The target's part to score once more after training, with the last and the best checkpoint, where the part to
    evaluate on has served to choose. Default: none."""
    score_classes: str = "auto"
    """Classes of the mean IoU, which decides what checkpoint is best: a score set of the class list (of cityscapes: 13,
    16, 19). auto: those that source and target both label; in `simfast evaluate`, those that the target labels. Only
    those that occur in the labels count."""
    cache: Path | None = None
    """Folder that `simfast prepare` filled for these settings; the data sets' own files are then not read."""
    flip: bool = False
    """Mirror half of the training images."""
    skip_bad_files: int = 0
    """Up to so many files to train on may be bad: each is named, and the next one in the order of its data set stands
    in for it; its pseudo label keeps nothing. Of several processes, each has so many, and all but the first count anew
    in a resumed run. Held-out files must all be good: scores are over all of them."""
    workers: int = 4
    """Processes that read data, or threads where a cache has it all and in `simfast predict`; 0 = none beside the
    program's own."""


@dataclass(frozen=True)
class Model:
    """The segmentation network."""

    arch: Literal["resnet18", "resnet50", "resnet101", "vgg16"] = "resnet101"
    """Backbone of DeepLabV2 (section 5.1)."""
    weights: Path | None = None
    """Initial weights: a file of torchvision, AdaptSegNet, SIM, ADVENT, CLAN, BDL, FDA or DACS, also as safetensors, a
    run folder or checkpoint of simfast. Default: random."""
    ema: bool = False
    """Take the running average of the weights that the file keeps beside them (model_ema, ema_model; of a run with
    online self-training, its mean teacher)."""
    convention: Literal["auto", "bgr", "rgb"] = "auto"
    """Input the weights expect: BGR minus caffe's mean, or RGB with ImageNet's. auto: what their file tells."""
    head_dilations: tuple[int, ...] | None = None
    """Dilations of the head's summed convolutions (released code: 6 12). Default: those of the head that the weights
    bring, as far as their file tells, which must be said otherwise; 6 12 18 24 for a new head."""
    resnet_style: Literal["auto", "caffe", "torchvision"] = "auto"
    """Where a bottleneck of a ResNet has its stride: on the first convolution (caffe, and so the released code), or on
    the 3x3 one (torchvision). auto: torchvision for weights for RGB input that are not simfast's, whose own tell; else
    caffe."""
    batch_norm: Literal["train", "frozen", "per-domain"] = "train"
    """Batch statistics in training; or the stored ones; or batch statistics of which the target's alone are stored."""


@dataclass(frozen=True)
class Losses:
    """What is minimised."""

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
    self_training: Literal["none", "online"] = "none"
    """online, beyond the paper: a mean teacher labels target images, on which half of the classes of a source image are
    pasted; the network learns from the mixed images too (DACS, Tranheden et al. 2021). Other than in its authors' code:
    255 is never one of the classes to paste, each image has a weight of its own (see confidence), the teacher is in
    eval mode, its decay is teacher-decay, and there is no colour jitter or blur."""
    lambda_mix: float = 1.0
    """Weight of the segmentation loss on mixed images."""
    teacher_decay: float = 0.999
    """What stays of the mean teacher at a step (DACS' code: 0.99)."""
    confidence: float = 0.968
    """A target image's mixed pixels count with the share of its pixels of which the teacher is surer than this (DACS'
    code: with the share of the whole batch's pixels)."""


@dataclass(frozen=True)
class Matching:
    """Stuff and instance matching (Eq. 4-8)."""

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


@dataclass(frozen=True)
class Step:
    """The training step and its optimisers."""

    step_mode: Literal["auto", "eager", "compile", "graph", "compile+graph"] = "auto"
    """How a step runs: operator by operator; with networks compiled by torch; as one CUDA graph; or both. auto: a graph
    on a GPU where it can be captured, else eager."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic inside the networks; weights, losses and matching stay fp32 (what is remembered: bank-dtype). auto:
    bf16 on a GPU that has it, else fp32. fp16 scales the losses. fp32 on a GPU is what torch takes for it: convolutions
    by cuDNN multiply in TF32 (11 bits of mantissa) and add in fp32, unless torch.backends.cudnn.allow_tf32 is switched
    off."""
    fuse: tuple[Fuse, ...] = ("none",)
    """Parts of the step that run as fewer, larger operations, with the same results but for rounding. norms: batch
    norm, residual and ReLU in one. cooperative: that in one launch each way, whose programs wait for each other.
    products: 1x1 convolutions that find batch norm's statistics as they write. weights: 16-bit copies of the weights
    once a step. head: its dilated convolutions as one matrix product. maps: upsampling, softmax and cross entropy in
    one. all: each of these. No part has been measured on a GPU yet; on a CPU they are for tests."""
    memory: Literal["usual", "low"] = "usual"
    """low: what batch norms inside a residual block give is computed again in the backward pass instead of kept (with
    norms of fuse; frozen batch norms keep as little without it)."""
    engines: Literal["torch", "measured"] = "torch"
    """Who chooses how a GPU computes each convolution: torch (under --deterministic without measuring), or the first
    step, which times the deterministic ways; the choice is kept in the run folder, so that a resumed run has it too."""
    batch_size: int = 1
    """Images of each domain in a step; with torchrun, of each of its processes."""
    steps: int = 200_000
    """Steps to train."""
    schedule_steps: int = 250_000
    """Length of the poly schedule, steps; no less than are trained."""
    lr: float = 2.5e-4
    """Learning rate of the backbone."""
    head_lr_factor: float = 10.0
    """The head's learning rate over the backbone's (released code: 10 for ResNets, from a pretrained backbone; 1 for
    VGG16, whose parameters are one group there)."""
    backbone_updates: Literal["once", "listed"] = "once"
    """How often a step updates a parameter of a ResNet's backbone. once: as is usual, and as SIM's released code comes
    out under apex O2. listed: as often as the released optimiser lists it, conv1 once, blocks 3 and their shortcuts 4
    times, each of which is an update in torch; about three times the backbone's learning rate. So trains AdaptSegNet's
    code, without apex, and whatever was trained with it."""
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


# By the names that --help and settings files have for them.
GROUPS = {"run": Run, "data": Data, "model": Model, "losses": Losses, "matching": Matching, "step": Step}
