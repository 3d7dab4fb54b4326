"""Folders of a user's, and folder trees as GTA5, SYNTHIA and Cityscapes are released, in small: names and encodings are
theirs."""

import cv2
import numpy as np
from PIL import Image

from simfast.config.classes import CITYSCAPES
from simfast.data import open_dataset
from simfast.data.classes import palette


def picture(seed, size=(20, 14)):
    """A picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def ids_map(ids, size=(20, 14)):
    """A map uint8 [H, W] in which each id occurs, in vertical stripes of equal width as far as they go."""
    return np.broadcast_to(np.resize(np.array(ids, np.uint8), size[0]), (size[1], size[0])).copy()


def save(path, content):
    """A picture or a uint8 map as PNG; makes the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path)


def save_native_synthia(path, classes, instances=7000):
    """A 16-bit PNG of three channels: class, instance, nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.stack([np.zeros_like(classes), np.full_like(classes, 0), classes], -1).astype(np.uint16)
    channels[..., 1] = instances
    assert cv2.imwrite(str(path), channels)  # OpenCV's order is blue, green, red


def make_gta5(root, count=3, ids=(7, 8, 11, 34, 0)):
    """ROOT/{images,labels}/00001.png ...; labels are palette PNG."""
    for i in range(1, count + 1):
        save(root / f"images/{i:05d}.png", picture(i))
        label = Image.fromarray(ids_map(ids))
        label.putpalette(palette(CITYSCAPES).tobytes())
        save(root / f"labels/{i:05d}.png", label)
    return root


def make_synthia(root, count=3, ids=(3, 4, 22), native=True, decoded=None):
    """ROOT/RGB/0000000.png ...; labels in GT/LABELS, and in the folder `decoded`."""
    for i in range(count):
        save(root / f"RGB/{i:07d}.png", picture(i))
        if native:
            save_native_synthia(root / f"GT/LABELS/{i:07d}.png", ids_map(ids))
        if decoded:
            save(root / decoded / f"{i:07d}.png", ids_map(ids))
    return root


CITIES = {"train": ("aachen", "zurich"), "val": ("frankfurt", "lindau"), "test": ("berlin",)}


def make_cityscapes(root, splits=("train", "val"), ids=(7, 8, 33), count=2, size=(32, 16), labelled=True):
    """ROOT/{leftImg8bit,gtFine}/SPLIT/CITY/CITY_000000_000019_*.png ..., `count` images a city."""
    for split in splits:
        for city in CITIES[split]:
            for i in range(count):
                stem = f"{split}/{city}/{city}_{i:06d}_000019"
                save(root / f"leftImg8bit/{stem}_leftImg8bit.png", picture(i, size))
                if labelled:
                    save(root / f"gtFine/{stem}_gtFine_labelIds.png", ids_map(ids, size))
                    save(root / f"gtFine/{stem}_gtFine_instanceIds.png", ids_map(ids, size).astype(np.uint16))
                    save(root / f"gtFine/{stem}_gtFine_color.png", picture(i, size))
    return root


def pictures(root, *files):
    """Pictures of noise, each its own, under these paths."""
    for number, file in enumerate(files):
        save(root / file, picture(number))


def label_maps(root, *files, ids=(1, 2)):
    for file in files:
        save(root / file, ids_map(ids))


def opened(root, split="train", **options):
    return open_dataset("folder", root, split, (20, 14), **options)


def paths(data, root):
    """Images and label maps as paths under the root."""
    return [
        tuple(file.relative_to(root).as_posix() for file in pair) for pair in zip(data.images, data.labels, strict=True)
    ]
