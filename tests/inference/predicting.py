"""A network, pictures and outputs of predictions in tests."""

from functools import partial

import numpy as np
import torch
from torch import nn

from simfast.config.classes import CITYSCAPES
from simfast.inference.predict import predict as predict_with

predict = partial(predict_with, classes=CITYSCAPES)


class Brightness(nn.Module):
    """Nineteen shades: of the classes, the one whose share of white comes closest; it also notes its inputs' sizes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append((images.shape[3], images.shape[2]))
        grey = images.mean(1, keepdim=True) * 0.225 + 0.45  # nearly what normalise has undone
        shades = torch.linspace(0, 1, 19).view(1, 19, 1, 1)
        return images, -((grey - shades) ** 2)


def picture(seed, width, height):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
