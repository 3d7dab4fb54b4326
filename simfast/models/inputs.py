"""How a network's weights want its input: of which channels, about which mean."""

import torch
from torch import Tensor

from simfast.models.weights_file import CONVENTIONS

BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)  # caffe's ImageNet mean of B, G, R in [0, 255]
RGB_MEAN = (0.485, 0.456, 0.406)  # ImageNet mean and deviation of R, G, B in [0, 1], as torchvision has them
RGB_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, convention: str) -> Tensor:
    """Network input float32 [B, 3, H, W] of 8-bit RGB images [B, 3, H, W], on their device.

    "bgr": channels in B, G, R order minus caffe's mean, in [0, 255]. "rgb": (x / 255 - mean) / std of ImageNet.
    The constants travel as scalar arguments: nothing is copied between host and device, so it can be captured in a
    CUDA graph.

    Raises:
        ValueError: images of another type or shape, or an unknown convention.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"normalise: images must be uint8 [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    red, green, blue = images.unbind(1)
    if convention == "bgr":
        planes = [plane.float() - mean for plane, mean in zip((blue, green, red), BGR_MEAN, strict=True)]
    elif convention == "rgb":
        scales = zip((red, green, blue), RGB_MEAN, RGB_STD, strict=True)
        planes = [(plane.float() - 255 * mean) / (255 * std) for plane, mean, std in scales]
    else:
        raise ValueError(f"normalise: convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return torch.stack(planes, dim=1)
