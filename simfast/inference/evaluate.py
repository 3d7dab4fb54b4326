"""Confusion matrix and IoU of a network on a labelled data set, at the labels' own resolution."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simfast.models.inputs import normalise
from simfast.models.upsampled import upsample
from simfast.runtime.console import Progress


def full_size_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Arg-max of logits upsampled to a size as `simfast.models.upsampled.upsample` does; of equals, the lowest class.

    One class at a time: the upsampled logits of all classes (160 MB for 2048x1024) are never in memory together, and
    a running maximum is several times faster than an arg-max across planes on a CPU. The same values as at once.

    Args:
        logits: floating [K, h, w], finite, K up to 256.
        size: (H, W).

    Returns:
        uint8 [H, W], on the device of logits.
    """
    first, *others = logits.float()[:, None, None]
    best = upsample(first, size)[0, 0]
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for c, logit in enumerate(others, start=1):
        plane = upsample(logit, size)[0, 0]
        labels.masked_fill_(plane > best, c)
        torch.maximum(best, plane, out=best)
    return labels


def count_confusion(predicted: Tensor, labels: Tensor, num_classes: int, ignore: int = 255) -> Tensor:
    """How many pixels of each true class (row) were given each class (column); `ignore` pixels are left out.

    Args:
        predicted: integer, any shape, in [0, num_classes).
        labels: integer, the same shape, in [0, num_classes) or `ignore`.

    Returns:
        int64 [num_classes, num_classes], on the maps' device, without a host read on a GPU.

    Raises:
        ValueError: the shapes differ; on a CPU also a label outside those ranges (a GPU stops with its own error).
    """
    if predicted.shape != labels.shape:
        raise ValueError(
            f"count_confusion: labels must have the shape of predicted {list(predicted.shape)}, "
            f"got {list(labels.shape)}"
        )
    num_bins = 1 + num_classes * num_classes  # the first one takes the ignored pixels
    index = torch.where(labels == ignore, 0, 1 + labels.int() * num_classes + predicted.int()).flatten()
    counts = _count_on_gpu(index, num_bins) if index.is_cuda else torch.bincount(index, minlength=num_bins)
    if len(counts) > num_bins:
        raise ValueError(
            f"count_confusion: labels must be in 0-{num_classes - 1}, or {ignore}, got {labels.unique().tolist()}"
        )
    return counts[1:].view(num_classes, num_classes)


def _count_on_gpu(index: Tensor, num_bins: int) -> Tensor:
    """`torch.bincount` without its wait for the device: int64 [num_bins] of int32 [N] in [0, num_bins)."""
    # Neighbouring pixels, mostly of one bin, go to different rows of counts: else they would queue for one address.
    rows = 1024
    place = index.long() * rows + torch.arange(len(index), device=index.device) % rows
    counts = torch.zeros(num_bins * rows, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, place, torch.ones_like(place)).view(num_bins, rows).sum(1)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found. A mean is over those classes of its set that have an IoU, added in the order of their
    ids, as cityscapesscripts does.

    A class that no pixel of the labels has has no IoU, whatever was predicted: there was nothing to be found.
    (cityscapesscripts counts it as 0 once it is predicted.) A pixel counts against the class predicted for it whatever
    its true class, also where a mean leaves that out.

    Attributes:
        iou: intersection over union of each class that can be in the labels, in [0, 1], by class id; NaN where they
            have no pixel of it.
        class_ids: the classes asked for, ascending.
        miou: mean over class_ids; NaN where none has an IoU.
        means: mean over each of the named sets whose every class can be in the labels.
        pixel_accuracy: share of labelled pixels that are right.
    """

    iou: dict[int, float]
    class_ids: tuple[int, ...]
    miou: float
    means: dict[str, float]
    pixel_accuracy: float

    @staticmethod
    def of(
        confusion: Tensor,
        class_ids: Iterable[int],
        labelled_ids: Iterable[int] | None = None,
        sets: Mapping[str, Iterable[int]] | None = None,
    ) -> "Scores":
        """Scores of a confusion matrix.

        Args:
            confusion: integer [K, K], of `count_confusion`.
            class_ids: the classes whose mean is `miou`.
            labelled_ids: the classes that can be in the labels; None: class_ids.
            sets: further classes to take the mean of, by name (`Classes.sets`).

        Raises:
            ValueError: a class asked for that cannot be in the labels.
        """
        class_ids, labelled = _sorted(class_ids, labelled_ids)
        confusion = confusion.double().cpu()
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        iou = {c: float(hit[c] / union[c]) if confusion[c].any() else math.nan for c in labelled}
        means = {name: _mean(iou, ids) for name, ids in (sets or {}).items() if set(ids) <= set(labelled)}
        return Scores(iou, class_ids, _mean(iou, class_ids), means, float(hit.sum() / confusion.sum()))


def _sorted(class_ids: Iterable[int], labelled_ids: Iterable[int] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The classes asked for, and those that can be in the labels.

    Raises:
        ValueError: one that cannot be.
    """
    class_ids = tuple(sorted(class_ids))
    labelled = class_ids if labelled_ids is None else tuple(sorted(labelled_ids))
    if not set(class_ids) <= set(labelled):
        raise ValueError(f"class_ids: must be among the labels' classes {labelled}, got {class_ids}")
    return class_ids, labelled


def _mean(iou: dict[int, float], class_ids: Iterable[int]) -> float:
    total, count = 0.0, 0
    for c in class_ids:  # one by one: sum() is compensated from Python 3.12 on, and torch adds in another order
        if not math.isnan(iou[c]):
            total, count = total + iou[c], count + 1
    return total / count if count else math.nan


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Collection,
    class_ids: Iterable[int],
    convention: str,
    device: torch.device,
    keep: int = 0,
    *,
    labelled_ids: Iterable[int] | None = None,
    sets: Mapping[str, Iterable[int]] | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Scores, list[tuple[Tensor, Tensor, Tensor]]]:
    """Scores of a network over a data set; the logits are upsampled to each label map's own size.

    Args:
        model: images -> (features, logits); put into eval mode, and back as it was.
        loader: batches (images uint8 [B, 3, H, W], label maps uint8 [H', W'], names).
        class_ids: the classes whose mean is reported as `miou`.
        convention: the input the network expects, "bgr" or "rgb".
        device: where to compute.
        keep: how many pictures to return for looking at: of as many batches, evenly spread, the first image.
        labelled_ids: the classes that can be in the labels, which all get an IoU; None: class_ids.
        sets: further classes to take the mean of, by name (`Classes.sets`).
        total: where several processes evaluate a share each, what sums a tensor over them; all get the scores of all.
        dtype: of the network's arithmetic; the logits are upsampled in float32 whatever it is.

    Returns:
        scores: one device read at the end.
        pictures: up to `keep` of (image uint8 [3, H, W], prediction uint8 [H', W'], label uint8 [H', W']), on the CPU.

    Raises:
        ValueError: a class asked for that cannot be in the labels; no batch; logits that are not finite.
    """
    class_ids, labelled = _sorted(class_ids, labelled_ids)
    was_training = model.training
    confusion, finite, pictures = None, None, []
    # Spread over the set: neighbours are often pictures of one video.
    shown = {len(loader) * i // keep for i in range(keep)}
    try:
        model.eval()
        for number, (images, labels, _) in enumerate(Progress(loader, desc="evaluate", unit="batch", leave=False)):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                _, logits = model(normalise(images.to(device, non_blocking=True), convention))
            if confusion is None:
                confusion = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64, device=device)
                finite = torch.ones((), dtype=torch.bool, device=device)
            finite &= logits.isfinite().all()
            for i, (image, one, label) in enumerate(zip(images, logits, labels, strict=True)):
                predicted = full_size_labels(one, label.shape)
                confusion += count_confusion(predicted, label.to(device, non_blocking=True), logits.shape[1])
                if i == 0 and number in shown:
                    pictures.append((image, predicted.cpu(), label))
    finally:
        model.train(was_training)
    if confusion is None:
        raise ValueError("evaluate: loader must give at least one batch, got none")
    broken = (~finite).long()
    if total is not None:
        confusion, broken = total(confusion), total(broken)
    if broken:
        raise ValueError(
            "evaluate: logits must be finite, got NaN or infinity for at least one image: the network has diverged; "
            "what helps is another training, such as one with a lower --lr"
        )
    return Scores.of(confusion, class_ids, labelled, sets), pictures
