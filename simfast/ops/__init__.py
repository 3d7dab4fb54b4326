"""The native ops. Same names, signatures and results as `simfast.reference`, for the CPU and CUDA.

Importing this package never fails for want of the library: `available()` says whether it is there, and an op that is
called without it raises one sentence with the command that builds it; the `upsampled_*` do without it. All ops keep the
dtypes they are given under autocast, read nothing back to the host, and give the same bits from run to run. Where there
is no memory for an output or a workspace, of the native ops on any device, they raise MemoryError with its name, dtype
and shape.
"""

from simfast.ops.batch_norm_act import batch_norm_act
from simfast.ops.components import connected_components
from simfast.ops.conv1x1_statistics import conv1x1_statistics
from simfast.ops.library import available
from simfast.ops.matching_losses import matching_losses
from simfast.ops.nearest import nearest_l1
from simfast.ops.regions import find_regions
from simfast.ops.ring_write import ring_write
from simfast.ops.segment_mean import segment_mean
from simfast.ops.select_rings import select_rings
from simfast.ops.sum_of_taps import sum_of_taps
from simfast.ops.upsampled import upsampled_cross_entropy, upsampled_softmax

__all__ = [
    "available",
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
