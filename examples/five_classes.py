"""Writes data like a user's own, from the embedded streets: five classes in colours, photographs without labels.

    python examples/five_classes.py FOLDER

FOLDER/renders has images and painted labels, FOLDER/photos a flat heap of pictures, FOLDER/classes.yaml says what the
colours mean. docs/your-data.md goes on from there.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from simfast.config.classes import CITYSCAPES
from simfast.data import open_dataset

CLASSES = """\
# What is told apart, in the order of the train ids; colours are what the label files are painted in.
classes:
  - {name: ground,   colour: "#8c6d5a", kind: stuff, colours: ["#8c6d5a"]}
  - {name: building, colour: "#4d5a73", kind: stuff, colours: ["#4d5a73"]}
  - {name: nature,   colour: "#7fa650", kind: stuff, colours: ["#7fa650", "#a8d0e6"]}  # green, and the sky
  - {name: vehicle,  colour: "#e4572e", kind: thing, colours: ["#e4572e"]}
  - {name: person,   colour: "#ffc914", kind: thing, colours: ["#ffc914"]}
other: ignore  # poles, lights and signs are painted white
"""
PAINT = {
    "#8c6d5a": ("road", "sidewalk", "terrain"),
    "#4d5a73": ("building", "wall", "fence"),
    "#7fa650": ("vegetation",),
    "#a8d0e6": ("sky",),
    "#e4572e": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "#ffc914": ("person", "rider"),
}


def write(folder: Path, most: int | None = None) -> None:
    """
    Args:
        folder: where to; made if need be.
        most: pictures of each kind; None: all.
    """
    paint = np.full((256, 3), 255, np.uint8)
    for colour, names in PAINT.items():
        paint[[CITYSCAPES.names.index(name) for name in names]] = list(bytes.fromhex(colour[1:]))
    for kind in ("renders/images", "renders/labels", "photos"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    source = open_dataset("streets", None, "source", (320, 240), resize_labels=False)
    for i, path in enumerate(source.images[:most]):
        shutil.copy(path, folder / "renders/images")
        Image.fromarray(paint[source.label(i).numpy()]).save(folder / "renders/labels" / f"{path.stem}.png")
    for path in open_dataset("streets", None, "train", (320, 240), labelled=False).images[:most]:
        shutil.copy(path, folder / "photos")
    (folder / "classes.yaml").write_text(CLASSES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
