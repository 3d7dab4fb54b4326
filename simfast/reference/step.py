"""The fused ops of the training step in pure PyTorch; see `simfast.reference`.

Letters: B images, C channels, K classes, H W map, h w feature map; of conv1x1_statistics K and N channels in and out, M
pixels, P chunks of them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from simfast.reference.checks import came, check_map


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    act: str = "relu",
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    statistics: tuple[Tensor, int] | None = None,
    twice: bool = False,
    cooperative: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """act(batch_norm(x) + residual), found in float64 and rounded once.

    Args:
        x: floating [B, C, H, W].
        running_mean, running_var: floating [C], which training moves in place (the variance unbiased), or both None.
        weight, bias: floating [C].
        residual: as x, or None.
        act: "relu" or "none".
        training: whether to normalise by the mean and the biased variance of x over its images and pixels, and not by
            the running statistics.
        momentum: what of x's statistics goes into the running ones.
        eps: added to the variance.
        statistics: what is known of x's statistics already; not looked at.
        twice: return the output as two tensors.
        cooperative: makes no difference.

    Returns:
        [B, C, H, W] of x's dtype, or two; differentiable in x, weight, bias and residual.

    Source: Ioffe and Szegedy (2015), Algorithm 1.
    """
    values = x.double()
    mean, var = running_mean, running_var
    if training:
        mean = values.mean((0, 2, 3))
        var = (values - mean[:, None, None]).square().mean((0, 2, 3))
        if running_mean is not None:
            count = x.numel() // x.shape[1]
            with torch.no_grad():
                running_mean += momentum * (mean - running_mean)
                running_var += momentum * (var * count / (count - 1) - running_var)
    mean, var, weight, bias = (p.double()[:, None, None] for p in (mean, var, weight, bias))
    y = (values - mean) / (var + eps).sqrt() * weight + bias
    if residual is not None:
        y = y + residual.double()
    y = (y.relu() if act == "relu" else y).to(x.dtype)
    return (y, y) if twice else y


def conv1x1_statistics(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, int]:
    """A 1x1 convolution of stride 1 without bias, and mean and M2 of each chunk of its output's pixels.

    The chunks are of `rows` pixels in the order (B, H, W), the last one of what is left. M2 is the sum of squared
    distances to the chunk's mean, of the output as rounded to its dtype.
    Gradient flows from `out` alone.

    Args:
        x: floating [B, K, H, W].
        weight: [N, K, 1, 1], of x's dtype.

    Returns:
        out: [B, N, H, W], channels-last, of x's dtype; products summed in float64.
        partials: float32 [2, P, N] (float64 for float64 x), P = ceil(B * H * W / rows): means in [0], M2 in [1].
        rows: pixels of a chunk, 128.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    if x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(f"conv1x1_statistics: x must be non-empty floating [B, K, H, W], {came(x)}")
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 1, 1) or len(weight) == 0 or weight.dtype != x.dtype:
        raise ValueError(f"conv1x1_statistics: weight must be [N, {x.shape[1]}, 1, 1] of x's dtype, {came(weight)}")
    rows = 128
    pixels = x.permute(0, 2, 3, 1)
    out = (pixels.double() @ weight.flatten(1).double().T).to(x.dtype)
    partials = []
    for chunk in out.detach().flatten(0, 2).double().split(rows):
        mean = chunk.mean(0)
        partials.append(torch.stack([mean, (chunk - mean).square().sum(0)]))
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    return out.permute(0, 3, 1, 2), torch.stack(partials, 1).to(statistics), rows


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore: int = 255,
    map_dtype: torch.dtype | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cross entropy of bilinearly upsampled logits (aligned corners), mean over the pixels that are not `ignore`.

    Args:
        logits: floating [B, K, h, w].
        labels: integer [B, H, W], in [0, K) or `ignore`.
        map_dtype: dtype of the softmax map to return; None for none.
        weights: floating [B, H, W], a factor of each pixel's cross entropy, which the mean still divides by the number
            of pixels; None: 1.

    Returns:
        loss: float32 scalar (float64 for float64 logits), 0 where every pixel is `ignore`. Differentiable in logits.
        maps: [B, P, H, W] of map_dtype, channels-last, P the next multiple of 8 from K: the softmax of the upsampled
            logits and zeros, detached; or None.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.

    Source: Eq. 1, Eq. 10.
    """
    check_map("upsampled_cross_entropy", "labels", labels)
    num_classes, label = logits.shape[1], labels.long()
    valid = label != ignore
    wrong = label[valid & ((label < 0) | (label >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"upsampled_cross_entropy: labels must be in [0, {num_classes}) or {ignore}, got {wrong[0].item()}"
        )
    log = _upsampled(logits, labels.shape[1:]).log_softmax(1)
    terms = -log.gather(1, label.where(valid, 0)[:, None])[:, 0]
    if weights is not None:
        terms = terms * weights.where(valid, 0)
    loss = torch.where(valid, terms, 0).sum() / valid.sum().clamp(min=1)
    return loss, None if map_dtype is None else _padded(log.detach().exp()).to(map_dtype)


def upsampled_softmax(logits: Tensor, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Softmax over the classes of bilinearly upsampled logits (aligned corners), channels padded with zeros.

    Args:
        logits: floating [B, K, h, w].
        size: (H, W).
        dtype: of the result.

    Returns:
        [B, P, H, W], channels-last, P the next multiple of 8 from K: the softmax, then zeros. Differentiable in logits.

    Source: what the discriminator sees (Eq. 2, Eq. 3).
    """
    return _padded(_upsampled(logits, size).softmax(1)).to(dtype)


def sum_of_taps(products: Tensor, bias: Tensor, dilations: Sequence[int]) -> Tensor:
    """The sum of dilated 3x3 convolutions, whose taps' products with each pixel are here. As `simfast.ops`."""
    _, height, width, _ = products.shape
    dtype = torch.float64 if products.dtype == torch.float64 else torch.float32
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    offsets = [(0, 0), *((d * y, d * x) for d in dilations for y, x in around)]
    rows = torch.arange(height, device=products.device)
    columns = torch.arange(width, device=products.device)
    total = bias.to(dtype)
    for tap, (dy, dx) in enumerate(offsets):
        inside = ((rows + dy >= 0) & (rows + dy < height))[:, None] & (columns + dx >= 0) & (columns + dx < width)
        moved = products[:, (rows + dy).clamp(0, height - 1)][:, :, (columns + dx).clamp(0, width - 1)]
        total = total + torch.where(inside[..., None], moved[..., tap * len(bias) : (tap + 1) * len(bias)].to(dtype), 0)
    return total.to(products.dtype).permute(0, 3, 1, 2)


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.interpolate(wide, tuple(size), mode="bilinear", align_corners=True)


def _padded(maps: Tensor) -> Tensor:
    return F.pad(maps, (0, 0, 0, 0, 0, -maps.shape[1] % 8)).contiguous(memory_format=torch.channels_last)
