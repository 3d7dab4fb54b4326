"""find_regions on maps at stride 8 against a loop over classes with a labelling of binary images."""

import numpy as np
import pytest
import torch

from bench.timing import Contender, compare, needs
from simfast import ops, reference
from simfast.testing import DEVICES, STUFF, THINGS, assert_same, noise_labels, smooth_labels

SIZE = (91, 161)  # stride 8 of 1280 x 720
MAPS = {
    "smooth": smooth_labels(1, *SIZE, scale=16),
    "fine": smooth_labels(1, *SIZE, scale=4),
    "noise": noise_labels(1, *SIZE),
    "smooth, 8 images": smooth_labels(8, *SIZE, scale=16),
}


def regions_by_class(labels: np.ndarray, max_instances: int = 10) -> np.ndarray:
    """Labels every thing class, sorts its regions by area, keeps the largest: what training code does on the host."""
    from scipy import ndimage

    eight = np.ones((3, 3), int)
    segments = np.full(labels.shape, -1, np.int32)
    for b, x in enumerate(labels):
        for slot, c in enumerate(STUFF):
            segments[b][x == c] = slot
        for t, c in enumerate(THINGS):
            ids, number = ndimage.label(x == c, eight)
            areas = np.bincount(ids.ravel(), minlength=number + 1)[1:]
            for k, i in enumerate(np.argsort(-areas, kind="stable")[:max_instances]):
                segments[b][ids == i + 1] = len(STUFF) + t * max_instances + k
    return segments


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MAPS)
def bench_regions(benchmark, kind, device):
    labels = MAPS[kind].to(device)
    expected_segments, expected_areas = reference.find_regions(MAPS[kind], STUFF, THINGS)

    def check(found) -> None:
        assert_same(found[0], expected_segments, "segments")
        assert_same(found[1], expected_areas, "areas")

    def run():
        return ops.find_regions(labels, STUFF, THINGS)

    def through_the_host():
        return torch.from_numpy(regions_by_class(labels.cpu().numpy())).to(device)

    if device == "cpu":
        contenders = [
            Contender("simfast, 1 thread", run, check, threads=1),
            Contender("simfast, 2 threads", run, check, threads=2),
        ]
    else:
        contenders = [Contender("simfast", run, check)]
    contenders += [
        Contender("reference", lambda: reference.find_regions(labels, STUFF, THINGS), check),
        Contender("scipy, per class", missing=needs("scipy"))
        if needs("scipy")
        else Contender("scipy, per class", through_the_host, lambda found: assert_same(found, expected_segments)),
    ]
    compare(benchmark, contenders, device, labels.numel() * (labels.element_size() + 4), rounds=31)
