"""connected_components on maps of Cityscapes' size against what labels such maps today."""

import numpy as np
import pytest
import torch

from bench.timing import Contender, compare, needs
from simfast import ops
from simfast.testing import DEVICES, IGNORE, assert_same, noise_labels, smooth_labels

sk_label = pytest.importorskip("skimage.measure").label
HEIGHT, WIDTH, CLASSES = 1024, 2048, 19
MAPS = {
    "smooth": smooth_labels(1, HEIGHT, WIDTH, CLASSES, scale=32),
    "fine": smooth_labels(1, HEIGHT, WIDTH, CLASSES, scale=4),
    "noise": noise_labels(1, HEIGHT, WIDTH, CLASSES),
}


def number_of(labels: np.ndarray) -> int:
    return int(sk_label(labels, background=IGNORE).max())


def check_number(expected: int):
    def check(found) -> None:
        assert int(found) == expected, f"{int(found)} components, expected {expected}"

    return check


def cpu_peers(labels: torch.Tensor) -> list[Contender]:
    """All peers read NumPy; those for binary images run once per class."""
    x = labels[0].numpy()
    total = check_number(number_of(x))
    eight = np.ones((3, 3), int)
    peers = []
    for package in ("cc3d", "skimage", "scipy", "cv2"):
        if missing := needs(package):
            peers.append(Contender(package, missing=missing))
    names = {p.name for p in peers}
    if "cc3d" not in names:
        import cc3d

        shifted = x + np.uint8(1)  # cc3d's background is 0

        def label_cc3d():
            return cc3d.connected_components(shifted, connectivity=8, return_N=True)[1]

        peers.append(Contender("cc3d", label_cc3d, total))
    if "skimage" not in names:
        peers.append(Contender("skimage", lambda: sk_label(x, background=IGNORE, return_num=True)[1], total))
    if "scipy" not in names:
        from scipy import ndimage

        def label_scipy():
            return sum(ndimage.label(x == c, eight)[1] for c in range(CLASSES))

        peers.append(Contender("scipy, per class", label_scipy, total))
    if "cv2" not in names:
        import cv2

        def label_cv2():
            return sum(cv2.connectedComponents((x == c).view(np.uint8), connectivity=8)[0] - 1 for c in range(CLASSES))

        peers.append(Contender("OpenCV, per class", label_cv2, total))
    return peers


def cuda_peers(labels: torch.Tensor) -> list[Contender]:
    total = check_number(number_of(labels[0].cpu().numpy()))
    peers = [Contender("colorcc", missing="no package of that name")]
    if missing := needs("cupyx.scipy.ndimage"):
        peers += [Contender(f"cupyx, {how}", missing=missing) for how in ("per class", "classes as a third axis")]
    else:
        import cupy
        from cupyx.scipy import ndimage

        x = cupy.from_dlpack(labels[0])
        classes = cupy.arange(CLASSES, dtype=x.dtype)[:, None, None]
        flat = cupy.ones((3, 3), int)
        in_plane = cupy.zeros((3, 3, 3), int)
        in_plane[1] = 1

        peers.append(
            Contender(
                "cupyx, per class",
                lambda: sum(ndimage.label(x == c, flat)[1] for c in range(CLASSES)),
                total,
                graph=False,
            )
        )
        peers.append(
            Contender(
                "cupyx, classes as a third axis",
                lambda: ndimage.label(x[None] == classes, in_plane)[1],
                total,
                graph=False,
            )
        )
    if missing := needs("cucim.skimage.measure"):
        peers.append(Contender("cucim", missing=missing))
    else:
        import cupy
        from cucim.skimage.measure import label as cucim_label

        shifted = cupy.from_dlpack(labels[0]) + 1
        peers.append(
            Contender("cucim", lambda: cucim_label(shifted, background=0, return_num=True)[1], total, graph=False)
        )
    return peers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=["uint8", "int64"])
@pytest.mark.parametrize("kind", MAPS)
def bench_components(benchmark, kind, dtype, device):
    labels = MAPS[kind].to(device, dtype)
    expected = sk_label(MAPS[kind][0].numpy().astype(np.int64), background=IGNORE)

    def check(found) -> None:
        assert_same(found[0][0], torch.from_numpy(expected.astype(np.int32)), "ids")

    def run():
        return ops.connected_components(labels)

    bytes_moved = labels.numel() * (labels.element_size() + 4)
    if device == "cpu":
        contenders = [
            Contender("simfast, 1 thread", run, check, threads=1),
            Contender("simfast, 2 threads", run, check, threads=2),
        ]
        peers = cpu_peers(labels)
    else:
        contenders, peers = [Contender("simfast", run, check)], cuda_peers(labels)
    compare(benchmark, contenders + peers, device, bytes_moved, rounds=41)
