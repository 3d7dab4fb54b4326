"""Image transfer on the device: source images made to look like the target images of the same step.

Source image i takes after target image i, counted modulo the target's batch. Nothing is random, learned or read back to
the host. Letters: B images, H W pixels of the source, B' H' W' those of the target.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("none", "fda", "lab")

_XYZ_OF_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear sRGB to CIE XYZ, white D65 (ITU-R BT.709)."""
_RGB_OF_XYZ = tuple(map(tuple, np.linalg.inv(_XYZ_OF_RGB).tolist()))
_WHITE = (0.95047, 1.0, 1.08883)
"""XYZ of D65 for the 2 degree observer."""
_MIN_STD = 0.1
"""Lab units. Far under what is seen (about 2) and in any photograph, far over the rounding noise of a grey one (0.001),
which must not be stretched to the target's colours."""


def transfer(kind: str, source: Tensor, target: Tensor, beta: float = 0.01) -> Tensor:
    """The source batch as it is ("none"), or by `fourier_transfer` ("fda", with beta) or `lab_transfer` ("lab").

    Raises:
        ValueError: another kind, or what the two functions raise.
    """
    if kind not in KINDS:
        raise ValueError(f"transfer: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "fda":
        return fourier_transfer(source, target, beta)
    return lab_transfer(source, target) if kind == "lab" else source


def fourier_transfer(source: Tensor, target: Tensor, beta: float = 0.01) -> Tensor:
    """Source images with the target's amplitudes at low frequencies, the phase kept (FDA, Yang & Soatto, CVPR 2020).

    Per channel, in the window of frequencies -b..b in both directions, b = floor(beta min(H, W)), rounded and clipped:
    as in the authors' demonstration (`FDA_source_to_target_np`). Their training code takes -b..b-1, a window that is
    not symmetric, and neither rounds nor clips; its images are 2-4 grey levels from these. A target of another size is
    first resized to the source's, bilinearly with antialiasing.

    Args:
        source: uint8 [B, 3, H, W], RGB.
        target: uint8 [B', 3, H', W'], RGB, on the same device.
        beta: in [0, 0.5]; 0 changes the mean colour alone.

    Returns:
        uint8 [B, 3, H, W], rounded and clipped.

    Raises:
        ValueError: other shapes or dtypes, two devices, beta out of range.
    """
    _check("fourier_transfer", source, target)
    if not 0 <= beta <= 0.5:
        raise ValueError(f"fourier_transfer: beta must be in [0, 0.5], got {beta}")
    height, width = source.shape[2:]
    style = _matched(target, len(source)).float()
    if style.shape[2:] != source.shape[2:]:
        style = F.interpolate(style, (height, width), mode="bilinear", antialias=True)
    # The half spectrum is enough: the window is symmetric, so the result has no imaginary part.
    # Amplitudes and phases by real arithmetic: the complex functions are compiled in the first call on a GPU.
    spectrum = torch.fft.rfft2(source.float())
    amplitude = torch.hypot(*torch.view_as_real(torch.fft.rfft2(style)).unbind(-1))
    b = math.floor(min(height, width) * beta)
    for rows in (slice(0, b + 1), slice(height - b, height)):  # frequencies 0..b, and -b..-1
        window = torch.view_as_real(spectrum[..., rows, : b + 1])
        phase = torch.atan2(window[..., 1], window[..., 0])
        spectrum[..., rows, : b + 1] = torch.polar(amplitude[..., rows, : b + 1], phase)
    return _to_uint8(torch.fft.irfft2(spectrum, (height, width)))


def lab_transfer(source: Tensor, target: Tensor) -> Tensor:
    """Source images with the target's mean and standard deviation of each CIE Lab channel.

    Reinhard et al. 2001, in CIE Lab (sRGB, D65) as He et al., CVPR 2021 have it: image by image, in float32. A channel
    whose deviation is under 0.1 is stretched as if it were 0.1, so one that is constant only moves its mean.

    Args:
        source: uint8 [B, 3, H, W], RGB.
        target: uint8 [B', 3, H', W'], RGB, on the same device; its size does not matter.

    Returns:
        uint8 [B, 3, H, W], rounded and clipped.

    Raises:
        ValueError: other shapes or dtypes, two devices.
    """
    _check("lab_transfer", source, target)
    lab, style = _lab_of_rgb(source.float() / 255), _lab_of_rgb(target.float() / 255)
    std, mean = torch.std_mean(lab, (2, 3), correction=0, keepdim=True)
    style_std, style_mean = (
        _matched(x, len(source)) for x in torch.std_mean(style, (2, 3), correction=0, keepdim=True)
    )
    return _to_uint8(255 * _rgb_of_lab((lab - mean) * (style_std / std.clamp(min=_MIN_STD)) + style_mean))


def _lab_of_rgb(rgb: Tensor) -> Tensor:
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    ratio = [x / white for x, white in zip(_mix(_XYZ_OF_RGB, linear), _WHITE, strict=True)]
    x, y, z = (torch.where(r > 0.008856, r ** (1 / 3), 7.787 * r + 16 / 116) for r in ratio)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _rgb_of_lab(lab: Tensor) -> Tensor:
    """May leave [0, 1] where the colour is outside sRGB."""
    y = (lab[:, 0] + 16) / 116
    roots = (y + lab[:, 1] / 500, y, (y - lab[:, 2] / 200).clamp(min=0))
    ratio = [torch.where(r > 0.2068966, r**3, (r - 16 / 116) / 7.787) for r in roots]
    xyz = torch.stack([r * white for r, white in zip(ratio, _WHITE, strict=True)], 1)
    linear = torch.stack(_mix(_RGB_OF_XYZ, xyz), 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055, 12.92 * linear)


def _mix(matrix: tuple[tuple[float, ...], ...], planes: Tensor) -> list[Tensor]:
    """matrix @ planes over the channels; by hand, for a matrix product may run in TF32 or under autocast."""
    return [sum(weight * planes[:, i] for i, weight in enumerate(row)) for row in matrix]


def _matched(target: Tensor, num: int) -> Tensor:
    """Items i % B' of the target for i < num, without an index tensor, which would be copied from the host."""
    return target if len(target) == num else target.repeat(-(-num // len(target)), 1, 1, 1)[:num]


def _to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).byte()


def _check(name: str, source: Tensor, target: Tensor) -> None:
    for argument, images in (("source", source), ("target", target)):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(
                f"{name}: {argument} must be a uint8 [B, 3, H, W], none of them 0, "
                f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )
    if source.device != target.device:
        raise ValueError(f"{name}: target must be on the source's device {source.device}, got {target.device}")
