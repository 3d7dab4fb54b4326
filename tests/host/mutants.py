"""Cases that a mutated library must fail: `python mutants.py` takes lines of a library and a case, and answers each.

A case is tried in a process of its own, forked from this one, which has torch: a mutant may also crash or hang. The
answer is that process's status, 0 if every result equals the expected one.
"""

import os
import signal
import sys
from pathlib import Path

import host_build
import numpy as np
import torch
from conftest import bits
from skimage.measure import label as sk_label
from test_cuda_components import TILE_MAPS, unit_patterns
from test_cuda_matching import make_write, written_by
from test_cuda_segment_mean import make

from simfast import reference
from simfast.testing import HARD_MAPS, feature_maps, noise_labels

SEEDS = range(1, 4)


def components(library) -> bool:
    wide = noise_labels(1, 129, 600, 2, 0.3)[0].numpy()  # wide: ten warps share in numbering a row of tiles
    bytes_differ = noise_labels(1, 40, 70, 2)[0].long().numpy() * 2**40 + 3
    for x in [HARD_MAPS["spiral"], wide, TILE_MAPS["one class over six tiles"], bytes_differ, unit_patterns()]:
        for connectivity in (4, 8):
            ids, counts = library.components(x[None], connectivity, 255)
            expected = sk_label(x.astype(np.int64), background=255, connectivity=connectivity // 4)
            if not (np.array_equal(ids[0], expected) and counts[0] == expected.max()):
                return False
    return True


def regions(library) -> bool:
    labels = noise_labels(1, 40, 50, 5)
    for limit in (99 * 1024, 40 * 1024):
        library.limit_shared_memory(limit)
        few = labels.repeat_interleave(3, 1)[:, :70].repeat_interleave(3, 2)[:, :, :131]
        many = noise_labels(1, 60, 90, 9)  # more components than are compared with each other at once
        for x in (labels, few, many):
            segments, areas = library.regions(x.numpy(), [0], [1, 2, 3], 5, 8)
            expected = reference.find_regions(x, [0], [1, 2, 3], 5, 8)
            if not (np.array_equal(segments, expected[0]) and np.array_equal(areas, expected[1])):
                return False
    return True


def segment_mean(library) -> bool:
    cases = [make((1, 40, 21, 33, 8), dtype) for dtype in (torch.float32, torch.bfloat16)]
    # Parts of more pixels than a warp's ring holds, and runs so long that lanes seldom meet in a shuffle.
    rows = (torch.arange(33, dtype=torch.int32) % 8)[None, :, None].expand(1, 33, 80)
    cases.append((feature_maps(1, 2048, 33, 80, torch.bfloat16), rows.contiguous()))
    for features, segments in cases:
        expected = reference.segment_mean(features.double(), segments, 8).numpy()
        channels_last = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for x, pixels in ((features, False), (channels_last, True)):
            means, _ = library.segment_mean(bits(x), str(x.dtype)[6:], pixels, segments.numpy(), 8)
            if not np.allclose(means, expected, atol=1e-4):
                return False
    # Values whose sums are rounded the same way again and again.
    values, one = np.array([1.608, 1.617, 1.633, 1.642], np.float32), np.zeros((1, 520, 521), np.int32)
    planes = np.broadcast_to(values[:, None, None], (1, 4, 520, 521))
    for pixels in (False, True):
        x = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if pixels else planes.copy()
        means, _ = library.segment_mean(x, "float32", pixels, one, 1)
        if not np.allclose(means, values, rtol=2**-21, atol=0):
            return False
    return True


def backward(library) -> bool:
    _, segments = make((1, 40, 21, 33, 8), torch.float32)
    counts = torch.stack([(segments == s).sum((1, 2)) for s in range(8)], 1).int()
    grad_means = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(1))
    features = torch.zeros(1, 40, 21, 33, requires_grad=True)
    reference.segment_mean(features, segments, 8).backward(grad_means)
    got = library.segment_mean_backward(grad_means.numpy(), counts.numpy(), segments.numpy(), "float32", False, 0)
    return np.allclose(got.reshape(1, 40, 21, 33), features.grad.numpy(), atol=1e-5)


def rings(library) -> bool:
    for name in ("training", "more vectors than rows", "three tiles"):
        arguments = make_write(name)
        storage, written = written_by(library, *arguments)
        reference.ring_write(*arguments)
        if not (torch.equal(storage, arguments[0]) and torch.equal(written, arguments[1])):
            return False
    areas, slots, logits = torch.ones(2, 5, dtype=torch.int32), torch.arange(5), torch.zeros(10, 40)
    got = library.select_rings(areas.numpy(), slots.numpy(), logits.numpy(), "float32", (slots * 0).numpy())
    return np.array_equal(got, reference.select_rings(areas, slots, logits, slots * 0))


def losses(library) -> bool:
    shape = (70, 6)  # more images than warps
    rows, distances = torch.zeros(shape, dtype=torch.int64), torch.arange(420.0).view(shape)
    expected = reference.matching_losses(distances, rows, rows, 2, 2, 8)
    got = library.matching_losses(distances.numpy(), rows.numpy(), rows.numpy(), 2, 2, 8 * 70)
    return np.allclose([float(x[0]) for x in got], [float(x) for x in expected], rtol=1e-5)


def same(library: Path, case: str) -> bool:
    module = host_build.load(library)
    for seed in SEEDS:
        module.configure(seed=seed, resident_blocks=4)
        if not globals()[case](module):
            return False
    return True


if __name__ == "__main__":
    for line in sys.stdin:
        library, case = line.split()
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            status = 2
            try:
                status = 0 if same(Path(library), case) else 1
            finally:
                os._exit(status)
        print(os.waitpid(child, 0)[1], flush=True)
