"""The discriminator of the adversarial loss (Eq. 2 and 3), with the parameter names of the AdaptSegNet family."""

import torch.nn.functional as F
from torch import Tensor, nn

from simfast.ops.upsampled import padded

# Five convolutions, each of which halves the map and rounds down.
SMALLEST_INPUT = 2**5


class Discriminator(nn.Module):
    """Five 4x4 convolutions of stride 2, leaky ReLU 0.2 between them, no batch norm (released code).

    Args:
        num_classes: channels of the softmax map that it judges.
        width: channels of the first convolution; they double up to 8 * width, then one.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_classes, width, kernel_size=4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, kernel_size=4, stride=2, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, kernel_size=4, stride=2, padding=1)
        self.classifier = nn.Conv2d(8 * width, 1, kernel_size=4, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Domain logits [B, 1, H // 32, W // 32] of softmax maps [B, num_classes, H, W]; the source is 0, the target 1.

        Args:
            maps: with channels of zeros up to the next multiple of 8, or without.

        Raises:
            ValueError: maps of another rank or channel count, or smaller than 32 x 32.
        """
        channels = self.conv1.in_channels
        if maps.dim() != 4 or maps.shape[1] not in (channels, padded(channels)):
            also = "" if channels == padded(channels) else f" or [B, {padded(channels)}, H, W], the last ones zeros"
            raise ValueError(f"Discriminator: maps must be [B, {channels}, H, W]{also}, got {list(maps.shape)}")
        height, width = maps.shape[2:]
        if min(height, width) < SMALLEST_INPUT:
            raise ValueError(
                f"Discriminator: maps must be at least {SMALLEST_INPUT} x {SMALLEST_INPUT} (H x W), "
                f"got {height} x {width}"
            )
        x = F.leaky_relu(self._first(maps), 0.2, inplace=True)
        for convolution in (self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(convolution(x), 0.2, inplace=True)
        return self.classifier(x)

    def _first(self, maps: Tensor) -> Tensor:
        conv1, more = self.conv1, maps.shape[1] - self.conv1.in_channels
        if not more:
            return conv1(maps)
        weight = F.pad(conv1.weight, (0, 0, 0, 0, 0, more))  # with zeros, of input channels
        return F.conv2d(maps, weight, conv1.bias, conv1.stride, conv1.padding)
