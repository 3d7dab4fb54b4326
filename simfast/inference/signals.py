"""What can be said of a network without labels: how sure it is, how steady, and of which classes it sees how much.

None of it is a score: a network that is sure may be wrong. It shows what goes astray, such as a class that swallows the
others, or confidence that grows while mirrored images are labelled ever more differently.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simfast.inference.evaluate import count_confusion, full_size_labels
from simfast.models.inputs import normalise
from simfast.models.upsampled import upsample
from simfast.runtime.console import Progress

SAMPLE = 100
"""Images of the target that are looked at, and label maps of the source that are counted, evenly spread over each."""


def spread(num: int, most: int = SAMPLE) -> list[int]:
    """Places of `most` items of `num`, ascending and evenly spread from the first on; of fewer, all."""
    most = min(num, most)
    return [num * i // most for i in range(most)]


@dataclass(frozen=True)
class Signals:
    """Of the pixels of all images together.

    Attributes:
        images: how many were looked at.
        confidence: mean confidence, which is the maximum of the softmax of the upsampled logits.
        entropy: mean entropy of that softmax over log K, its highest value for K classes: 0 where the network is sure,
            1 where every class is as likely.
        over_cap: share whose confidence is at least the cap: those that a pseudo label keeps whatever its class.
        mirror: share that is given the same class where the mirrored image is labelled, and mirrored back.
        shares: share given each class, by class id; their sum is 1.
    """

    images: int
    confidence: float
    entropy: float
    over_cap: float
    mirror: float
    shares: tuple[float, ...]


@torch.no_grad()
def find_signals(
    model: nn.Module,
    loader: Collection,
    convention: str,
    device: torch.device,
    cap: float,
    keep: int = 0,
    *,
    total: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Signals, list[tuple[Tensor, Tensor]]]:
    """What a network's predictions of images tell without labels, at the images' own size.

    Args:
        model: images -> (features, logits [B, K, h, w]); put into eval mode, and back as it was.
        loader: batches (images uint8 [B, 3, H, W], anything, names).
        convention: the input the network expects, "bgr" or "rgb".
        device: where to compute.
        cap: of the threshold of pseudo labels, in (0, 1].
        keep: how many pictures to return for looking at: of as many batches, evenly spread, the first image.
        total: where several processes look at a share each, what sums a tensor over them; all get the same.
        dtype: of the network's arithmetic; the logits are upsampled in float32 whatever it is.

    Returns:
        signals: one device read at the end.
        pictures: up to `keep` of (image uint8 [3, H, W], prediction uint8 [H, W]), on the CPU.

    Raises:
        ValueError: no batch; logits that are not finite.
    """
    was_training = model.training
    model.eval()
    sums, confusion, pictures = None, None, []
    shown = set(spread(len(loader), keep))

    def logits_of(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(normalise(images, convention))[1]

    for number, (images, _, _) in enumerate(Progress(loader, desc="signals", unit="batch", leave=False)):
        size, on_device = images.shape[2:], images.to(device, non_blocking=True)
        logits, mirrored = logits_of(on_device), logits_of(on_device.flip(3))
        if sums is None:
            sums = torch.zeros(5, dtype=torch.float64, device=device)
            confusion = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64, device=device)
        for i, (image, one, other) in enumerate(zip(images, logits, mirrored, strict=True)):
            sums += _sums(one, other, size, cap)
            predicted = full_size_labels(one, size)
            confusion += count_confusion(full_size_labels(other, size).flip(1), predicted, logits.shape[1])
            if i == 0 and number in shown:
                pictures.append((image, predicted.cpu()))
    model.train(was_training)
    if sums is None:
        raise ValueError("find_signals: loader must give at least one batch, got none")
    sums = torch.cat([sums, confusion.double().flatten()])
    if total is not None:
        sums = total(sums)
    return _signals(sums.cpu(), len(confusion)), pictures


def _sums(logits: Tensor, mirrored: Tensor, size: Sequence[int], cap: float) -> Tensor:
    """float64 [5] of an image [K, h, w]: 1, pixels' confidence, their entropy in nats, how many are over the cap; and
    whether a logit is not finite."""
    log = upsample(logits[None].float(), size).log_softmax(1)
    softmax = log.exp()
    confidence = softmax.amax(1)
    found = [torch.ones((), device=log.device), confidence.sum(dtype=torch.float64)]
    found += [-(log * softmax).sum(dtype=torch.float64), (confidence >= cap).sum()]
    found += [~(logits.isfinite().all() & mirrored.isfinite().all())]
    return torch.stack([x.double() for x in found])


def _signals(sums: Tensor, num_classes: int) -> Signals:
    (images, confidence, entropy, over, broken), confusion = sums[:5].tolist(), sums[5:].view(num_classes, -1)
    if broken:
        raise ValueError("find_signals: logits must be finite, got NaN or infinity for at least one image")
    pixels = float(confusion.sum())
    return Signals(
        int(images),
        confidence / pixels,
        entropy / pixels / math.log(num_classes),
        over / pixels,
        float(confusion.trace()) / pixels,
        tuple((confusion.sum(1) / pixels).tolist()),
    )


def label_shares(labels: Iterable[Tensor], num_classes: int) -> tuple[float, ...]:
    """The share of each class among the labelled pixels of label maps, integer in [0, num_classes) or don't care; 0 for
    all where no pixel is labelled."""
    counts = torch.zeros(256, dtype=torch.int64)
    for label in labels:
        counts += torch.bincount(label.flatten(), minlength=256)
    counts = counts[:num_classes].double()
    return tuple((counts / counts.sum().clamp(min=1)).tolist())


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Total variation between the shares of classes in two sets of pixels: half the sum of the differences, which is
    the share of the pixels that would have to be of another class for the shares to be equal."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 2
