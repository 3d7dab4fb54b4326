"""Named starting points of the settings, and what the two recipes set."""

import dataclasses
from typing import Any

from simfast.config import Config

_STREETS = Config(
    source=("streets",),
    source_split=("source",),
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
# A user's own labelled folder -> CamVid, from ImageNet-like VGG16 weights.
_CAMVID = Config(
    source=("folder",),
    target="camvid",
    source_size=(480, 360),
    target_size=(480, 360),
    report_split="test",
    flip=True,
    arch="vgg16",
    steps=20_000,
    schedule_steps=25_000,
    eval_every=1000,
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
    "camvid": _CAMVID,
    # Minutes a row on two CPU cores that compute in bf16; for `simfast ablate --warm-up 800`.
    "camvid-cpu": dataclasses.replace(
        _CAMVID,
        source_size=(240, 180),
        target_size=(240, 180),
        workers=0,
        precision="bf16",
        batch_size=2,
        steps=400,
        schedule_steps=500,
        log_every=20,
        eval_every=200,
    ),
    "gta5": Config(),
    "synthia": Config(source=("synthia",), source_size=(1280, 760), score_classes="13"),
}

# The paper's recipe is the defaults. That the ring advances per accepted vector needs no option: it follows from the
# gate. The released code starts from a file of weights, which only the user has.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {
        "head_dilations": [6, 12],
        "nesterov": False,
        "gate": "released",
        "fill_rule": "full",
        "bank_dtype": "float32",
        "match_pseudo_labels": False,
        "lambda_ci_stage2": 0.001,
        "lambda_d": 0.5,
        "pseudo_softmax": "features",
    },
}


def of_recipe(recipe: str, arch: str) -> dict[str, Any]:
    """What a recipe sets for a network: the released code has the parameters of its VGG16 in one group, at one rate."""
    one_rate = recipe == "released" and arch == "vgg16"
    return RECIPES[recipe] | ({"head_lr_factor": 1.0} if one_rate else {})
