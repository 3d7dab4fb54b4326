"""The ops in pure PyTorch: the definition of correct for every kernel.

Same names, signatures, shapes and edge cases as `simfast.ops`; runs on any device, needs torch alone. Not made for
speed, and free to read values back to the host, which the kernels never do.
"""

from simfast.reference.matching import (
    connected_components,
    find_regions,
    matching_losses,
    nearest_l1,
    ring_write,
    segment_mean,
    select_rings,
)
from simfast.reference.step import (
    batch_norm_act,
    conv1x1_statistics,
    sum_of_taps,
    upsampled_cross_entropy,
    upsampled_softmax,
)

__all__ = [
    "batch_norm_act",
    "connected_components",
    "conv1x1_statistics",
    "find_regions",
    "matching_losses",
    "nearest_l1",
    "ring_write",
    "segment_mean",
    "select_rings",
    "sum_of_taps",
    "upsampled_cross_entropy",
    "upsampled_softmax",
]
