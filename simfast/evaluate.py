"""Confusion matrix and IoU of a network on a labelled data set, at the labels' own resolution."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from simfast.losses import upsample
from simfast.models.weights import normalise


def count_confusion(predicted: Tensor, labels: Tensor, num_classes: int, ignore: int = 255) -> Tensor:
    """How many pixels of each true class (row) were given each class (column); `ignore` pixels are left out.

    Args:
        predicted: integer, any shape, in [0, num_classes).
        labels: integer, the same shape, in [0, num_classes) or `ignore`.

    Returns:
        int64 [num_classes, num_classes], on the maps' device, without a host read.
    """
    spare = num_classes * num_classes  # where the ignored pixels are counted
    index = torch.where(labels == ignore, spare, labels.long() * num_classes + predicted.long()).flatten()
    counts = torch.zeros(spare + 1, dtype=torch.int64, device=index.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts[:spare].view(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        iou: intersection over union of each class asked for, in [0, 1], by class id; NaN where the class is neither in
            the labels nor predicted.
        miou: mean over the classes asked for that have an IoU.
        pixel_accuracy: share of labelled pixels that are right.
    """

    iou: dict[int, float]
    miou: float
    pixel_accuracy: float

    @staticmethod
    def of(confusion: Tensor, class_ids: Iterable[int]) -> "Scores":
        """Scores of a confusion matrix, over the given classes alone."""
        confusion = confusion.double().cpu()
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        iou = {c: float(hit[c] / union[c]) for c in class_ids}  # 0 / 0 is NaN
        values = torch.tensor(list(iou.values()), dtype=torch.float64)
        return Scores(iou, float(values.nanmean()), float(hit.sum() / confusion.sum()))


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable, class_ids: Iterable[int], convention: str, device: torch.device, keep: int = 0
) -> tuple[Scores, list[tuple[Tensor, Tensor, Tensor]]]:
    """Scores of a network over a data set; the logits are upsampled to each label map's own size.

    Args:
        model: images -> (features, logits); put into eval mode, and back as it was.
        loader: batches (images uint8 [B, 3, H, W], label maps uint8 [H', W'], names).
        class_ids: the classes whose mean is reported.
        convention: the input the network expects, "bgr" or "rgb".
        device: where to compute.
        keep: how many pictures to return for looking at.

    Returns:
        scores: one device read at the end.
        pictures: the first `keep` (image uint8 [3, H, W], prediction uint8 [H', W'], label uint8 [H', W']), on the CPU.
    """
    was_training = model.training
    model.eval()
    confusion, pictures = None, []
    for images, labels, _ in tqdm(loader, desc="evaluate", unit="batch", leave=False):
        _, logits = model(normalise(images.to(device, non_blocking=True), convention))
        if confusion is None:
            confusion = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64, device=device)
        for image, one, label in zip(images, logits, labels, strict=True):
            predicted = upsample(one[None].float(), label.shape)[0].argmax(0)
            confusion += count_confusion(predicted, label.to(device, non_blocking=True), logits.shape[1])
            if len(pictures) < keep:
                pictures.append((image, predicted.byte().cpu(), label))
    model.train(was_training)
    if confusion is None:
        raise ValueError("evaluate: loader must give at least one batch, got none")
    return Scores.of(confusion, class_ids), pictures
