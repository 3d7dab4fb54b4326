"""Label maps of a user's own pictures: ids, colours, and an overlay, each at its picture's own size."""

import errno
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from simfast.config.classes import Classes
from simfast.data.classes import palette
from simfast.data.listing import find_files, sentences
from simfast.data.pictures import IMAGE_SUFFIXES, read_image
from simfast.data.predictions import HEADER, KINDS, LIST_FILE, is_own_list, written_here
from simfast.inference.evaluate import full_size_labels
from simfast.models.inputs import normalise
from simfast.runtime.console import Progress
from simfast.runtime.files import replacing, write_text

log = logging.getLogger(__name__)

SMALLEST_SIDE = 32
_NAMES_NOT_TAKEN = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


class Skipped(NamedTuple):
    """A picture that could not be read, or whose outputs no file system takes by their names, and why."""

    path: Path
    reason: str


def network_size(size: tuple[int, int], target_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height to give the network for a picture of `size`: the area of `target_size`, in the picture's own
    aspect ratio, rounded to whole pixels; 2048x1024 becomes 1024x512. No side is under 32."""
    area = target_size[0] * target_size[1]
    width = math.sqrt(area * size[0] / size[1])
    # Of a picture longer than that allows, the long side shrinks instead of the area growing.
    width = min(max(width, SMALLEST_SIDE), area / SMALLEST_SIDE)
    return max(round(width), SMALLEST_SIDE), max(round(area / width), SMALLEST_SIDE)


def predict(
    model: nn.Module,
    convention: str,
    inputs: Path | Sequence[Path],
    out: Path,
    *,
    classes: Classes,
    target_size: tuple[int, int] = (1024, 512),
    size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    label_ids: bool = False,
    workers: int = 4,
) -> list[Skipped]:
    """Writes OUT/labels/NAME.png (ids), OUT/colour/NAME.png (the classes' colours) and OUT/overlay/NAME.png (half
    picture, half colours), all of the picture's own size, and OUT/classes.yaml, which says what the ids are, as a class
    list that reads these labels. A file of that name is replaced whole or not at all.

    Pictures may have any mode: transparency is ignored, of 16-bit grey the high byte counts, and one that is stored
    sideways (EXIF) is turned upright. The rest is as `simfast.inference.evaluate.evaluate` does it.

    Args:
        model: images -> (features, logits), on device; put into eval mode, and back as it was.
        convention: the input the network expects, "bgr" or "rgb".
        inputs: pictures, and folders that are searched with their sub-folders, which the output keeps; hidden files
            and what `simfast` has written, in OUT and elsewhere, are passed over.
        out: the folder to write to.
        classes: the network's.
        target_size: width and height of target images in training; its area is what the network is given.
        size: width and height that the network is given instead.
        device: where to compute.
        label_ids: write the first of each class's `ids` in the list instead of its place there: of Cityscapes, the
            label ids that its benchmark server expects. 16-bit PNG where one is over 255.
        workers: threads that read and write.

    Returns:
        the pictures that could not be read, or whose outputs' names are too long; all others are written.

    Raises:
        ValueError: before anything is written: no input, or one that is not there, a folder without pictures, two
            inputs with one output, an output that is an input, a size under 32, a class without the id asked for, a
            classes.yaml of another origin; later: logits that are not finite, or of another number of classes.
        OSError: an output cannot be written.
    """
    if size is not None and min(size) < SMALLEST_SIDE:
        raise ValueError(f"size: must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE}, got {size}")
    names = _output_names([inputs] if isinstance(inputs, str | Path) else inputs, Path(out))
    ids, colours, legend = _ids(classes, label_ids), palette(classes), Path(out) / LIST_FILE
    if legend.exists() and not is_own_list(legend):
        raise ValueError(f"{legend}: would be overwritten by the list of what the labels are; choose another folder")
    skipped: list[Skipped] = []

    def read(path: Path) -> tuple[Path, Image.Image, Image.Image] | Skipped:
        try:
            photo = read_image(path)
        except ValueError as error:
            return Skipped(path, str(error).removeprefix(f"{path}: "))
        return path, photo, photo.resize(size or network_size(photo.size, target_size), Image.Resampling.BICUBIC)

    def skip(picture: Skipped) -> None:
        log.warning("skipped %s: %s", *picture)
        skipped.append(picture)
        bar.update()

    def labelled(pictures: Iterable) -> Iterator[tuple[Path, Image.Image, np.ndarray]]:
        for picture in pictures:
            if isinstance(picture, Skipped):
                skip(picture)
            else:
                path, photo, image = picture
                yield path, photo, _labels(model, convention, image, photo.size[::-1], device, path, len(classes))

    def write(prediction: tuple[Path, Image.Image, np.ndarray]) -> Skipped | None:
        path, photo, labels = prediction
        try:
            _write(Path(out), names[path], photo, labels, ids, colours)
        except OSError as error:
            if error.errno not in _NAMES_NOT_TAKEN:
                raise
            return Skipped(path, f"its output cannot be written, {error}")
        return None

    was_training, listed = model.training, False
    model.eval()
    try:
        bar = Progress(total=len(names), desc="predict", unit="image")
        with bar, ThreadPoolExecutor(workers) as pool:
            for problem in _ahead(pool, write, labelled(_ahead(pool, read, names, 2 * workers)), 2 * workers):
                if problem:
                    skip(problem)
                    continue
                if not listed:
                    write_text(legend, HEADER + _listed(classes, ids).text())
                    listed = True
                bar.update()
    finally:
        model.train(was_training)
    log.info("labelled %d of %d pictures, in %s", len(names) - len(skipped), len(names), out)
    return skipped


def _output_names(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """The output's name under each of OUT/labels, OUT/colour and OUT/overlay, by input."""
    names: dict[Path, Path] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            found = {path: path.relative_to(given).with_suffix(".png") for path in _pictures(given, out)}
            if not found:
                raise ValueError(f"{given}: must hold a picture ({' '.join(IMAGE_SUFFIXES)}), got none")
            names |= found
        elif os.path.lexists(given):  # if it is no picture, reading says so
            names[given] = Path(given.name).with_suffix(".png")
        else:
            raise ValueError(f"{given}: must be a picture or a folder of pictures, got nothing there")
    if not names:
        raise ValueError("inputs: must name a picture or a folder of pictures, got none")
    first: dict[Path, Path] = {}
    for path, name in names.items():
        if name in first:
            raise ValueError(f"{path}: must have an output of its own, got {name} for {first[name]} too")
        first[name] = path
    for name, path in first.items():
        if above := next((first[folder] for folder in name.parents if folder in first), None):
            raise ValueError(f"{path}: must have an output of its own, got {name} below that of {above}")
    written = {os.path.realpath(out / kind / name) for name in first for kind in KINDS}
    for path in names:
        if os.path.realpath(path) in written:
            raise ValueError(f"{path}: is an input that would be overwritten by an output; choose another folder")
    return names


def _pictures(folder: Path, out: Path) -> list[Path]:
    own = {os.path.realpath(out / kind) for kind in KINDS}

    def leave(found: Path) -> str | None:
        return "folders of outputs" if os.path.realpath(found) in own else written_here(found)

    found, passed_over = find_files(folder, IMAGE_SUFFIXES, leave=leave)
    for sentence in sentences(folder, passed_over):
        log.info("%s", sentence)
    return list(found)


def _ids(classes: Classes, label_ids: bool) -> np.ndarray:
    """What is written for each class, uint8 or uint16 [K]."""
    if not label_ids:
        return np.arange(len(classes), dtype=np.uint8)
    for entry in classes.entries:
        if not entry.ids:
            raise ValueError(f"label_ids: every class of {classes} must have ids, got none for {entry.name!r}")
    ids = np.array([entry.ids[0] for entry in classes.entries], np.uint16)
    return ids if ids.max() > 255 else ids.astype(np.uint8)


def _listed(classes: Classes, ids: np.ndarray) -> Classes:
    """The class list that reads what was written."""
    entries = tuple(replace(one, ids=(int(i),), colours=()) for one, i in zip(classes.entries, ids, strict=True))
    return Classes(f"predictions, {classes.title}", entries, score_sets=classes.score_sets)


@torch.no_grad()
def _labels(
    model, convention: str, image: Image.Image, size: tuple[int, int], device, path: Path, num_classes: int
) -> np.ndarray:
    planes = torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))
    _, logits = model(normalise(planes[None].to(device), convention))
    if not logits.isfinite().all():
        raise ValueError(f"predict: logits must be finite, got NaN or infinity for {path}")
    if logits.shape[1] != num_classes:
        raise ValueError(f"classes: must be the network's {logits.shape[1]}, got {num_classes}")
    return full_size_labels(logits[0], size).cpu().numpy()


def _write(out: Path, name: Path, photo: Image.Image, labels: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> None:
    painted = Image.fromarray(labels)
    painted.putpalette(colours.tobytes())
    overlay = Image.blend(photo, painted.convert("RGB"), 0.5)
    pictures = dict(zip(KINDS, (Image.fromarray(ids[labels]), painted, overlay), strict=True))
    with ExitStack() as stack:  # all three are written before one of them takes its place
        for kind, picture in pictures.items():
            path = out / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(stack.enter_context(replacing(path)), format="PNG")


def _ahead(pool: Executor, function: Callable[[Any], Any], items: Iterable, depth: int) -> Iterator:
    """function(item) of each item, in order; at most `depth` of them are computed or wait at a time."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
