"""What the backbones are built of: batch norms, the blocks and stages of ResNets, VGG16."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simfast.models.recomputed import norm_act_conv
from simfast.ops.batch_norm_act import batch_norm_act
from simfast.ops.conv1x1_statistics import conv1x1_statistics

Pair = tuple[Tensor, Tensor]
"""One map for two consumers: the same tensor twice, or two of one storage whose gradients a fused batch norm adds."""
Statistics = tuple[Tensor, int] | None
"""What a product has found of its output's statistics, see `simfast.ops.conv1x1_statistics`."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with frozen affine parameters, whose running statistics a training batch can leave alone; with the
    residual and the ReLU that follow it.

    Attributes:
        fused: whether all of that is one operation, `simfast.ops.batch_norm_act`.
        cooperative: whether that takes one launch each way.
        products: whether a 1x1 convolution finds the statistics of what it writes, by `simfast.ops.conv1x1_statistics`.
        low_memory: whether what `then` gives to a convolution is found again in the backward pass, and not kept.
        folded: whether the convolution before has normalised already (`simfast.models.fusing.folded`).
    """

    fused = False
    cooperative = False
    products = False
    low_memory = False
    folded = False

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        track: bool = True,
        residual: Tensor | None = None,
        act: bool = False,
        statistics: Statistics = None,
    ) -> Tensor:
        """x [B, C, H, W] normalised, plus the residual, and its ReLU.

        Args:
            x: of any layout.
            track: False: in training, without a trace in the running statistics.
            residual: of x's shape, or None.
            act: whether a ReLU follows.
            statistics: of x, of `after`.
        """
        if self.fused and not self.folded:
            return self._fused(x, track, residual, statistics, act="relu" if act else "none")
        if self.folded:
            out = x
        elif self.training and not track:
            out = F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        else:
            # Not the parent's forward: it counts batches too, a launch a layer for a number that our momentum never
            # needs.
            mean, variance = self.running_mean, self.running_var
            out = F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)
        if residual is not None:
            out = out + residual
        return F.relu(out, inplace=True) if act else out

    def after(self, convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, Statistics]:
        """The convolution of x that this norm normalises, and its statistics where the product finds them."""
        if not self._of_product(convolution):
            return convolution(x), None
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        out, *statistics = conv1x1_statistics(x.to(dtype), convolution.weight.to(dtype))
        return out, tuple(statistics)

    def then(
        self, convolution: nn.Conv2d, following: "BatchNorm", x: Tensor, statistics: Statistics, track: bool
    ) -> tuple[Tensor, Statistics]:
        """What `following` normalises, and `after` gives it: a convolution of the ReLU of x normalised."""
        if self.fused and self.low_memory and self.training and torch.is_grad_enabled():
            product, norm = following._of_product(convolution), self._settings(track)
            return norm_act_conv(x, convolution, **norm, statistics=statistics, product=product)
        return following.after(convolution, self(x, track, act=True, statistics=statistics))

    def pair(self, x: Tensor, track: bool, residual: Tensor, statistics: Statistics = None) -> Pair:
        """The end of a residual block, for the two that begin the next one: ReLU of x normalised plus the residual."""
        if self.fused and not self.folded:
            return self._fused(x, track, residual, statistics, twice=True)
        out = self(x, track, residual, act=True)
        return out, out

    def _of_product(self, convolution: nn.Conv2d) -> bool:
        plain = convolution.kernel_size == convolution.stride == (1, 1) and convolution.bias is None
        return self.products and self.training and plain

    def _fused(self, x: Tensor, track: bool, residual: Tensor | None, statistics: Statistics, **options):
        options |= {"residual": residual, "training": self.training, "statistics": statistics}
        return batch_norm_act(x, **self._settings(track), **options)

    def _settings(self, track: bool) -> dict[str, Any]:
        tracked = track or not self.training
        return {
            "running_mean": self.running_mean if tracked else None,
            "running_var": self.running_var if tracked else None,
            "weight": self.weight,
            "bias": self.bias,
            "momentum": self.momentum,
            "eps": self.eps,
            "cooperative": self.cooperative,
        }


class Stage(nn.Sequential):
    """Blocks one after the other, each told whether to track statistics."""

    def forward(self, x: Pair, track: bool = True) -> Pair:
        for block in self:
            x = block(x, track)
        return x


class Downsample(nn.Sequential):
    """The residual branch where a block changes the channels or the stride: a 1x1 convolution and a batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), BatchNorm(out_channels)
        )

    def forward(self, x: Tensor, track: bool = True) -> Tensor:
        x, statistics = self[1].after(self[0], x)
        return self[1](x, track, statistics=statistics)


class BasicBlock(nn.Module):
    """ResNet-18's block: two 3x3 convolutions, the stride on the first, both dilated; see `Bottleneck`."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, first_dilation: int, late: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, first_dilation)
        self.bn1 = BatchNorm(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = BatchNorm(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Pair, track: bool = True) -> Pair:
        x, again = x
        residual = again if self.downsample is None else self.downsample(again, track)
        out, statistics = self.bn1.after(self.conv1, x)
        out, statistics = self.bn1.then(self.conv2, self.bn2, out, statistics, track)
        return self.bn2.pair(out, track, residual, statistics)


class Bottleneck(nn.Module):
    """ResNet-50/101's block: 1x1, 3x3 and 1x1 convolutions, the 3x3 one dilated.

    Args:
        in_channels, width: the channels that come, and those of the 3x3 convolution.
        stride: of the block.
        dilation: of the stage.
        first_dilation: of the first 3x3 convolution of the block.
        late: whether the stride is on the 3x3 convolution (torchvision), not on the first 1x1 one (caffe).
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, first_dilation: int, late: bool
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=1 if late else stride, bias=False)
        self.bn1 = BatchNorm(width)
        self.conv2 = _conv3x3(width, width, stride if late else 1, first_dilation)
        self.bn2 = BatchNorm(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = BatchNorm(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Pair, track: bool = True) -> Pair:
        x, again = x
        residual = again if self.downsample is None else self.downsample(again, track)
        out, statistics = self.bn1.after(self.conv1, x)
        out, statistics = self.bn1.then(self.conv2, self.bn2, out, statistics, track)
        out, statistics = self.bn2.then(self.conv3, self.bn3, out, statistics, track)
        return self.bn3.pair(out, track, residual, statistics)


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


def _downsample(in_channels: int, out_channels: int, stride: int) -> Downsample | None:
    # The family also asks for one in every dilated stage, but there the channels change anyway: the same blocks.
    if stride == 1 and in_channels == out_channels:
        return None
    return Downsample(in_channels, out_channels, stride)


def vgg16_layers() -> nn.Sequential:
    """VGG16 without pool4, pool5 and its classifier, fc6 and fc7 as dilated convolutions."""
    # Indices as in the family: conv5 at 23, 25, 27 because pool4 is gone; fc6 at 29 and fc7 at 31 because pool5 is.
    layers: list[nn.Module] = []
    channels = 3
    for width, depth, dilation, pooled in (
        (64, 2, 1, 1),
        (128, 2, 1, 1),
        (256, 3, 1, 1),
        (512, 3, 1, 0),
        (512, 3, 2, 0),
    ):
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=dilation, dilation=dilation))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        if pooled:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    for _ in ("fc6", "fc7"):
        layers += [nn.Conv2d(channels, 1024, kernel_size=3, padding=4, dilation=4), nn.ReLU(inplace=True)]
        channels = 1024
    return nn.Sequential(*layers)
