"""Pseudo labels of a whole data set (Eq. 9, section 6.2), in memory that does not grow with the number of images.

Two passes: the first counts the confidences of each class in bins, from which the thresholds come; the second writes
the label maps. Letters: H W pixels of an image, K classes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from simfast.config.classes import IGNORE
from simfast.data.loader import evaluation_loader
from simfast.data.predictions import PROGRESS_FILE
from simfast.inference.label_folder import (
    Begun,
    begin,
    finished_labels,
    map_checksum,
    map_path,
    read_map,
    save_begun,
    write_map,
    write_thresholds,
)
from simfast.models.inputs import normalise
from simfast.models.upsampled import upsample
from simfast.runtime.console import Progress
from simfast.runtime.files import sync_folder
from simfast.runtime.lock import locked, tidy

BINS = 2**16
"""Of the confidence, over [0, 1]. Medians are taken from the lower edges: less than 1 / BINS under the exact ones."""
SOFTMAX_AT = ("labels", "features")


@torch.no_grad()
def make_pseudo_labels(
    model: nn.Module,
    dataset: Dataset,
    out: Path,
    convention: str,
    device: torch.device,
    *,
    class_names: Sequence[str],
    softmax_at: str = "labels",
    cap: float = 0.9,
    workers: int = 0,
    skip: int | None = None,
    save_every: int = 200,
    info: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Write the pseudo label of every image to OUT/NAME.png, and how they came about to OUT/thresholds.json.

    label = arg-max and confidence = max of the softmax, at the size of the images. A class's threshold is the median of
    its confidences over the whole set (np.median's, less at most 1 / BINS), but at most `cap`. A pixel under the
    threshold of its class becomes 255; one that equals it, in float32, is kept.

    However it ended, the same call goes on from there; after a kill -9, at most `save_every` images are counted again.
    thresholds.json is written last: where it is, the set is complete, and the same call only verifies it. One that a
    power loss has cut is made anew.

    Args:
        model: images -> (features, logits), on `device`; put into eval mode, and back as it was.
        dataset: with len(), `names`, and items (image uint8 [3, H, W] of one size, anything, name). A name may have
            sub-folders, which OUT then has too.
        out: folder to write to, made if need be.
        convention: the input the network expects, "bgr" or "rgb".
        device: where to compute.
        class_names: of the K classes of the network, in their order.
        softmax_at: "labels": of the upsampled logits (Eq. 9); "features": at stride 8, then upsampled (released code).
        cap: the highest threshold, in (0, 1].
        workers: processes that read ahead; 0 reads in this one.
        skip: so many images may be bad files: each is named, and nothing of its map is kept. None: no error speaks of
            it.
        save_every: images of the first pass between two saves.
        info: JSON values to keep in thresholds.json, such as the checkpoint's path and step.
        stop: asked before each image; True saves and returns.

    Returns:
        What thresholds.json holds, but for its own checksum: images, size [W, H], softmax_at, cap, info, fingerprint,
            and classes: by name, threshold and median (None without a pixel), predicted_pixels, kept_pixels,
            kept_fraction (None); checksums: of the file of each map, by the image's name; and bad_files: what is wrong
            with those passed over, by name. Or None where `stop` said so.

    Raises:
        ValueError: an argument outside the sets above; a name that leads out of `out`; logits of another K, or NaN;
            images of several sizes; `out` holds the labels of another network, data set or options, or maps that are
            not known to be ours, or have changed; another program is in `out`; or what the data set raises.
        OSError: a file cannot be written.
    """
    if softmax_at not in SOFTMAX_AT:
        raise ValueError(f"softmax_at: must be one of {', '.join(SOFTMAX_AT)}, got {softmax_at!r}")
    if not 0 < cap <= 1:
        raise ValueError(f"cap: must be in (0, 1], got {cap}")
    num_classes = len(class_names)
    if not 2 <= num_classes <= IGNORE:
        raise ValueError(f"class_names: must be from 2 to {IGNORE}, got {num_classes}")
    if len(dataset) == 0:
        raise ValueError("dataset: must have an image, got none")
    info = json.loads(json.dumps(info or {}))  # what JSON cannot hold shows now, not after the work
    work = _Work(model, dataset, Path(out), convention, device, num_classes, softmax_at, workers, skip, stop)
    fingerprint = _fingerprint(model, dataset.names, (convention, num_classes, softmax_at, cap, BINS, work.size))
    finished = (work.out, dataset.names, fingerprint, class_names)
    if there := finished_labels(*finished):  # in a folder, perhaps, in which nothing can be written
        tidy(work.out)
        return there
    work.out.mkdir(parents=True, exist_ok=True)
    with locked(work.out, "out"):
        if there := finished_labels(*finished):  # by another program, meanwhile
            return there
        result = work.do(fingerprint, cap, save_every, class_names)
        if result is None:
            return None
        height, width = work.size
        about = {"images": len(dataset), "size": [width, height], "softmax_at": softmax_at, "cap": cap, "info": info}
        result = about | {"fingerprint": fingerprint} | result
        write_thresholds(work.out, result)
        (work.out / PROGRESS_FILE).unlink()
        sync_folder(work.out)  # or a power loss brings it back, for good
    return result


class _Work:
    """The two passes over one data set."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        out: Path,
        convention: str,
        device: torch.device,
        num_classes: int,
        softmax_at: str,
        workers: int,
        skip: int | None,
        stop: Callable[[], bool],
    ):
        self.model, self.dataset, self.out, self.convention, self.device = model, dataset, out, convention, device
        self.num_classes, self.softmax_at, self.workers, self.stop = num_classes, softmax_at, workers, stop
        self.skip, self.bad = skip, {}
        self.size = _first_size(dataset, skip or 0)

    def do(
        self, fingerprint: str, cap: float, save_every: int, class_names: Sequence[str]
    ) -> dict[str, dict[str, Any]] | None:
        """Both passes; "classes", "checksums" and "bad_files" of what `make_pseudo_labels` returns; None: stopped."""
        height, width = self.size
        bins = self.num_classes * BINS + 1
        begun = begin(self.out, self.dataset.names, fingerprint, bins, height * width)
        begun = begun._replace(histogram=begun.histogram.to(self.device))
        self.bad = begun.passed_over
        save = partial(save_begun, self.out, fingerprint)
        was_training = self.model.training
        self.model.eval()
        try:
            predicted = self.count(begun, save, save_every)
            if predicted is None:
                return None
            medians = [_median(counts) for counts in predicted]
            written = self.write([m if m is None else min(m, cap) for m in medians], begun, save)
        finally:
            self.model.train(was_training)
        if written is None:
            return None
        (kept, checksums), classes = written, {}
        for c, (name, median) in enumerate(zip(class_names, medians, strict=True)):
            total = int(predicted[c].sum())
            classes[name] = {
                "threshold": None if median is None else min(median, cap),
                "median": median,
                "predicted_pixels": total,
                "kept_pixels": int(kept[c]),
                "kept_fraction": int(kept[c]) / total if total else None,
            }
        return {"classes": classes, "checksums": checksums, "bad_files": self.bad}

    def count(self, begun: Begun, save: Callable[[Begun], None], save_every: int) -> np.ndarray | None:
        """First pass: the images that the histogram does not hold yet are added to it.

        Args:
            begun: its histogram [K * BINS + 1] of pixels by class and confidence, last those that are NaN, is changed,
                and so is what is passed over.

        Returns:
            int64 [K, BINS], or None where it was stopped.
        """
        histogram = begun.histogram
        first = int(histogram.sum()) // (self.size[0] * self.size[1]) + len(begun.passed_over)
        ones = torch.ones(self.size, dtype=torch.int64, device=self.device).flatten()
        try:
            for done, (images, name) in enumerate(self._read(range(first, len(self.dataset)), "thresholds"), 1):
                if self.stop():
                    return None
                confidence, labels = self._predict(images, name)
                # 1 belongs to the last bin. BINS is a power of 2, so the product is exact.
                bins = (confidence * BINS).long().clamp(0, BINS - 1)
                index = torch.where(confidence.isnan(), len(histogram) - 1, labels * BINS + bins)
                # The position is the sum of counts and bad files: nothing comes between an image and its being counted.
                histogram.scatter_add_(0, index.flatten(), ones)
                if done % save_every == 0:
                    save(begun)
        finally:
            save(begun)
        counts = histogram.cpu().numpy()
        if counts[-1]:
            raise ValueError(f"model: logits must be numbers, got NaN at {counts[-1]} pixels of the data set")
        return counts[:-1].reshape(self.num_classes, BINS)

    def write(
        self, thresholds: Sequence[float | None], begun: Begun, save: Callable[[Begun], None]
    ) -> tuple[np.ndarray, dict[str, str]] | None:
        """Second pass: the maps that are not there yet. Kept pixels by class, int64, and the checksum of each map's
        file by the image's name; or None where it was stopped."""
        height, width = self.size
        self.bad = begun.passed_over | begun.lost
        kept, missing, checksums = np.zeros(256, np.int64), [], dict.fromkeys(self.dataset.names, "")
        for i, name in enumerate(self.dataset.names):
            label = read_map(map_path(self.out, name), (width, height))
            if label is not None:
                kept += np.bincount(label.ravel(), minlength=256)
                checksums[name] = map_checksum(self.out, name)
            elif name not in self.bad:
                missing.append(i)
        # A class that the first pass did not see is not kept either.
        limits = torch.tensor([np.inf if t is None else t for t in thresholds], dtype=torch.float32).to(self.device)
        for images, name in self._read(missing, "maps"):
            if self.stop():
                return None
            confidence, labels = self._predict(images, name)
            label = torch.where(confidence >= limits[labels], labels, IGNORE)[0].byte().cpu().numpy()
            checksums[name] = write_map(self.out, name, label)
            kept += np.bincount(label.ravel(), minlength=256)
        lost = {name: reason for name, reason in self.bad.items() if name not in begun.passed_over}
        if lost != begun.lost:  # their maps will be there, and their files not be read again
            save(begun._replace(lost=lost))
        for name in self.bad:
            checksums[name] = checksums[name] or write_map(self.out, name, np.full(self.size, IGNORE, np.uint8))
        return kept, checksums

    def _predict(self, images: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Confidence, float32, and label, int64, both [1, H, W], of one image [1, 3, H, W]."""
        if images.shape[2:] != self.size:
            raise ValueError(f"{name}: must have the first image's size (H, W) {self.size}, got {images.shape[2:]}")
        _, logits = self.model(normalise(images.to(self.device, non_blocking=True), self.convention))
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"class_names: must be of the network's {logits.shape[1]} classes, got {self.num_classes}")
        if self.softmax_at == "features":
            return upsample(F.softmax(logits.float(), 1), self.size).max(1)
        return F.softmax(upsample(logits.float(), self.size), 1).max(1)

    def _read(self, places: Sequence[int], what: str) -> Iterator[tuple[Tensor, str]]:
        """Some items of the data set, one by one but for bad files, behind a bar that counts all of them."""
        num = len(self.dataset)
        loader = evaluation_loader(self.dataset, 1, self.workers, self.device, items=places, skip=self.skip)
        loader.skipped = self.bad
        bar = Progress(
            loader,
            desc=f"pseudo labels: {what}",
            unit="image",
            initial=num - len(places),
            total=num,
            leave=False,
        )
        for images, _, (name,) in bar:
            yield images, name


def _first_size(dataset: Dataset, skip: int) -> tuple[int, int]:
    """Height and width of the first image, which up to `skip` bad files may stand before."""
    for i in range(len(dataset)):
        try:
            return tuple(dataset[i][0].shape[1:])
        except (ValueError, OSError):
            if i == min(skip, len(dataset) - 1):
                raise
    raise AssertionError("an image is there")


def _median(counts: np.ndarray) -> float | None:
    """np.median of values counted in bins [BINS], each taken as its bin's lower edge; None of no value."""
    below = counts.cumsum()
    middle = [(below[-1] - 1) // 2, below[-1] // 2]
    return float(np.searchsorted(below, middle, side="right").mean() / BINS) if below[-1] else None


def _fingerprint(model: nn.Module, names: Sequence[str], options: tuple) -> str:
    """Changes with the network's layers and weights, the names of the images and the options."""
    digest = hashlib.sha256(repr((str(model), list(names), options)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
