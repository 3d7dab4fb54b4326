"""Networks and pictures that pseudo labels are made of in tests."""

import json

import numpy as np
import torch
from PIL import Image
from torch import nn

from simfast.inference.pseudo_labels import make_pseudo_labels

CPU = torch.device("cpu")
NUM_CLASSES, ABSENT = 6, 4
NAMES = ("sky", "soil", "leaf", "weed", "crop", "stone")


class Pictures:
    """Random images [3, H, W]; item i is the same whenever it is asked for."""

    def __init__(self, num, height=18, width=25):
        self.names = [f"street_{i:03d}" for i in range(num)]
        self.images = np.random.default_rng(0).integers(0, 256, (num, 3, height, width), np.uint8)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return torch.from_numpy(self.images[i]), torch.empty(0, dtype=torch.uint8), self.names[i]


class Network(nn.Module):
    """Random logits at a quarter of the images' size, never of class ABSENT. on_call(n) is told of the n-th forward."""

    def __init__(self, seed=0):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.convolution = nn.Conv2d(3, NUM_CLASSES, 4, stride=4)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.convolution.weight.normal_(0, 0.4, generator=generator)
            self.convolution.bias.normal_(0, 0.5, generator=generator)
            self.convolution.bias[ABSENT] = -1e4
        self.calls, self.on_call = 0, lambda n: None

    def forward(self, images):
        self.calls += 1
        self.on_call(self.calls)
        return images, self.convolution(self.norm(images))


def make(out, model=None, dataset=None, **options):
    model, dataset = Network() if model is None else model, Pictures(9) if dataset is None else dataset
    return make_pseudo_labels(model, dataset, out, "rgb", CPU, **({"class_names": NAMES} | options))


def read(path):
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def said(text):
    """What thresholds.json says, without the checksum of all that."""
    content = json.loads(text)
    assert len(content.pop("checksum")) == 32
    return content
