"""Pictures of predictions beside image and truth, of one run and of several."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from simfast.config.classes import Classes
from simfast.data.classes import colourise
from simfast.report.figures import save_figure
from simfast.runtime.files import replacing

PANEL_WIDTH = 1024
"""The most pixels that a picture in a panel is wide: at Cityscapes' 2048, a panel is 25 million pixels."""


def save_panel(path: Path, pictures: Sequence[tuple[Tensor, ...]], classes: Classes) -> None:
    """A picture of image, prediction and, where there is one, truth side by side, one row each; unlabelled pixels of
    the truth are black.

    All have the size of the smallest prediction, but at most `PANEL_WIDTH` in width.

    Args:
        path: the PNG to write.
        pictures: (image uint8 [3, H, W], prediction uint8 [H', W'], label uint8 [H', W']), on the CPU; all with a label
            or none.
        classes: whose colours they are painted in.
    """
    height, width = (min(predicted.shape[axis] for _, predicted, *_ in pictures) for axis in (0, 1))
    size = min(width, PANEL_WIDTH), round(height * min(1, PANEL_WIDTH / width))
    rows = []
    for image, *labels in pictures:
        photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        maps = (Image.fromarray(colourise(x.numpy(), classes)).resize(size, Image.Resampling.NEAREST) for x in labels)
        rows.append(np.concatenate([np.asarray(tile) for tile in (photo, *maps)], 1))
    with replacing(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, format="PNG")


def save_comparison(path: Path, panels: dict[str, Path], *, with_data: bool = True, truth: bool = True) -> None:
    """The predictions of several runs side by side, from their `save_panel` pictures of the same images.

    Args:
        path: the PNG to write.
        panels: picture of each run by its title.
        with_data: whether the images and the truth stand beside them; False where the data may not be passed on.
        truth: whether the pictures show it.
    """
    tiles = {title: np.split(np.asarray(Image.open(panel)), 2 + truth, axis=1) for title, panel in panels.items()}
    columns = {title: predicted for title, (_, predicted, *_) in tiles.items()}
    if with_data:
        image, _, *last = next(iter(tiles.values()))
        columns = {"image": image} | columns | ({"truth": last[0]} if truth else {})
    height, width = next(iter(columns.values())).shape[:2]
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * height / width + 0.3), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)
    for axis, (title, column) in zip(axes[0], columns.items(), strict=True):
        axis.imshow(column)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    save_figure(figure, path)
