"""Image transfer against NumPy's FFT, written as the FDA paper has it, and scikit-image's CIE Lab."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import color
from torch.utils._python_dispatch import TorchDispatchMode

from simfast.data.transfer import fourier_transfer, lab_transfer, transfer


def pictures(seed, num, height, width):
    """Smooth colours with texture, as a photograph has: uint8 [num, 3, height, width]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(rng.uniform(1, 9) * x + rng.uniform(1, 9) * y + rng.uniform(0, 6)) for _ in range(3 * num)]
    smooth = rng.uniform(60, 180, (num, 3, 1, 1)) + 50 * np.reshape(waves, (num, 3, height, width))
    return torch.from_numpy((smooth + rng.normal(0, 15, smooth.shape)).clip(0, 255).astype(np.uint8))


def resized(plane, height, width):
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def fourier_oracle(source, target, beta):
    """One image [3, H, W] in float64, not rounded."""
    height, width = source.shape[1:]
    target = np.stack([resized(plane, height, width) for plane in target]).astype(np.float64)
    spectrum = np.fft.fftshift(np.fft.fft2(source), axes=(1, 2))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    b, row, column = int(np.floor(min(height, width) * beta)), height // 2, width // 2
    window = np.s_[:, row - b : row + b + 1, column - b : column + b + 1]
    amplitude[window] = np.abs(np.fft.fftshift(np.fft.fft2(target), axes=(1, 2)))[window]
    return np.real(np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(1, 2))))


def lab_oracle(source, target):
    source, target = (color.rgb2lab(image.transpose(1, 2, 0).astype(np.float64) / 255) for image in (source, target))
    axes = (0, 1)
    moved = (source - source.mean(axes)) / source.std(axes) * target.std(axes) + target.mean(axes)
    return 255 * color.lab2rgb(moved).transpose(2, 0, 1)


def assert_rounds_to(got, expected, slack):
    """got is expected, rounded and clipped; slack: the float32 error, in grey values, that may tip the rounding."""
    assert got.dtype == torch.uint8
    assert np.abs(got.numpy() - expected.clip(0, 255)).max() <= 0.5 + slack


@pytest.mark.parametrize(
    ("size", "target_size", "beta"),
    [
        ((40, 64), (40, 64), 0.05),
        ((41, 63), (41, 63), 0.1),
        ((41, 64), (30, 90), 0.09),
        ((30, 31), (64, 48), 0.0),  # the mean alone
        ((16, 16), (16, 16), 0.5),  # every amplitude
        ((15, 22), (15, 22), 0.5),
        ((1, 7), (5, 3), 0.3),
    ],
    ids=str,
)
def test_fourier_transfer_is_the_papers(size, target_size, beta):
    source, target = pictures(0, 2, *size), pictures(1, 2, *target_size)
    got = fourier_transfer(source, target, beta)
    for ours, one, style in zip(got, source.numpy(), target.numpy(), strict=True):
        assert_rounds_to(ours, fourier_oracle(one, style, beta), 1e-3)
    assert not torch.equal(got, source)


@pytest.mark.parametrize("target_size", [(40, 64), (23, 90)])
def test_lab_transfer_matches_mean_and_deviation_in_cie_lab(target_size):
    source, target = pictures(0, 2, 40, 64), pictures(1, 2, *target_size)
    got = lab_transfer(source, target)
    for ours, one, style in zip(got, source.numpy(), target.numpy(), strict=True):
        # The gamma curve is steepest at black, where it makes 3,300 grey values of a step of 1 in linear light.
        assert_rounds_to(ours, lab_oracle(one, style), 1e-2)
    assert not torch.equal(got, source)


@pytest.mark.parametrize("kind", ["fda", "lab"])
def test_an_image_taking_after_itself_stays_as_it_is(kind):
    images = pictures(0, 1, 33, 50)
    assert torch.equal(transfer(kind, images, images, beta=0.2), images)


@pytest.mark.parametrize("kind", ["fda", "lab"])
@pytest.mark.parametrize("num_target", [1, 2, 5])
def test_source_image_i_takes_after_target_image_i_modulo_their_number(kind, num_target):
    source, target = pictures(0, 3, 20, 24), pictures(1, num_target, 18, 30)
    alone = [transfer(kind, source[i : i + 1], target[i % num_target][None], 0.1) for i in range(3)]
    assert torch.equal(transfer(kind, source, target, 0.1), torch.cat(alone))


@pytest.mark.parametrize("kind", ["fda", "lab"])
def test_a_constant_image_takes_the_targets_mean(kind):
    source, target = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8), pictures(1, 1, 16, 16)
    got = transfer(kind, source, target, beta=0)
    assert (got == got[:, :, :1, :1]).all()
    if kind == "fda":
        expected = target.double().mean((2, 3))
    else:
        mean = color.rgb2lab(target[0].permute(1, 2, 0).numpy()).mean((0, 1))
        expected = torch.from_numpy(255 * color.lab2rgb(mean))[None]
    assert (got[:, :, 0, 0] - expected).abs().max() <= 0.51
    black = torch.zeros_like(source)
    assert torch.equal(transfer(kind, black, black), black)


def test_a_grey_image_does_not_turn_its_rounding_noise_into_colour():
    grey = pictures(0, 1, 32, 32)[:, :1].expand(-1, 3, -1, -1)
    got = color.rgb2lab(lab_transfer(grey, pictures(1, 1, 32, 32))[0].permute(1, 2, 0).numpy())
    inside = (got[..., 0] > 20) & (got[..., 0] < 80)  # elsewhere the mean's colour may not exist at this lightness
    assert got[inside][:, 1:].std(0).max() < 1


class NoReads(TorchDispatchMode):
    """Fails where a value would be copied to or from the host on a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        assert function is not torch.ops.aten.lift_fresh.default, "a tensor made of host values"
        return function(*args, **(kwargs or {}))


class NoComplexFunctions(TorchDispatchMode):
    """Fails where torch would compile a kernel while it runs: those of functions of complex numbers on a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        compiled = function in (torch.ops.aten.abs.default, torch.ops.aten.angle.default, torch.ops.aten.mul.Tensor)
        assert not (compiled and args[0].is_complex()), function
        return function(*args, **(kwargs or {}))


def test_fourier_transfer_compiles_nothing_while_it_runs():
    with NoComplexFunctions():
        fourier_transfer(pictures(0, 1, 20, 24), pictures(1, 1, 18, 30), beta=0.1)


@pytest.mark.parametrize("kind", ["fda", "lab"])
def test_transfer_makes_no_copy_to_or_from_the_host(kind):
    source, target = pictures(0, 3, 20, 24), pictures(1, 2, 18, 30)
    with NoReads():
        transfer(kind, source, target, beta=0.1)


def test_none_returns_the_source():
    source = pictures(0, 1, 8, 8)
    assert transfer("none", source, pictures(1, 1, 8, 8)) is source


def test_bad_input_is_named():
    good = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="kind must be one of none, fda, lab, got 'gan'"):
        transfer("gan", good, good)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 0.5\], got 0.6"):
        transfer("fda", good, good, beta=0.6)
    for kind, name in (("fda", "fourier_transfer"), ("lab", "lab_transfer")):
        with pytest.raises(ValueError, match=rf"{name}: source must be a uint8 \[B, 3, H, W\].*got float32 \[1, 3, 4"):
            transfer(kind, good.float(), good)
        with pytest.raises(ValueError, match=rf"{name}: target must be a uint8 .*got uint8 \[0, 3, 4, 4\]"):
            transfer(kind, good, good[:0])
        with pytest.raises(ValueError, match="target must be on the source's device cpu, got meta"):
            transfer(kind, good, good.to("meta"))
