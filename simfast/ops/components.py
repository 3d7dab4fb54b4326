"""connected_components: multi-class, batched, ids in raster order."""

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import check_connectivity, check_map


def connected_components(labels: Tensor, connectivity: int = 8, background: int = 255) -> tuple[Tensor, Tensor]:
    """Component ids in raster order of each component's first pixel, and how many components each image has.

    Two neighbouring pixels belong together where they carry the same label and that label is not `background`. The
    labels are read in place, whatever their strides and dtype (an arg-max's int64 too). Not differentiable.

    Args:
        labels: integer [B, H, W] (uint8, int16, int32 or int64), any strides, H * W < 2^31.
        connectivity: 8 (also diagonal neighbours) or 4.
        background: label that belongs to no component; a value that the dtype cannot hold means "no background".

    Returns:
        ids: int32 [B, H, W], 0 on background, else 1..counts[b]. Equal value for value to
            `skimage.measure.label(x, background=background, connectivity=2)` (`connectivity=1` for 4 neighbours).
        counts: int32 [B].

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit.

    Source: the operation T of Eq. 7, for all classes of a map at once.
    """
    check_map("connected_components", "labels", labels)
    check_connectivity("connected_components", connectivity)
    library.require("connected_components", labels.device)
    return torch.ops.simfast.connected_components.default(labels, connectivity, background)


if library.available():

    @torch.library.register_fake("simfast::connected_components")
    def _(labels: Tensor, connectivity: int, background: int) -> tuple[Tensor, Tensor]:
        return labels.new_empty(labels.shape, dtype=torch.int32), labels.new_empty(labels.shape[:1], dtype=torch.int32)
