"""Which parts of a network run as fewer, larger operations: the setting `fuse`, on its modules."""

from collections.abc import Set

from torch import nn

from simfast.models.deeplab import DilatedHead
from simfast.models.layers import BatchNorm


def fuse(network: nn.Module, parts: Set[str], low_memory: bool = False) -> None:
    """Have these parts of a network run fused, and all others plain.

    Names, shapes and values of parameters and buffers stay as they are, and so do the results but for rounding.

    Args:
        network: of this package.
        parts: of "norms", "cooperative", "products", "head", "maps"; others do not concern networks.
        low_memory: with "norms": outputs of batch norms inside residual blocks are found again in the backward pass.
    """
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.fused, module.low_memory = "norms" in parts, low_memory
            module.cooperative, module.products = "cooperative" in parts, "products" in parts
        elif isinstance(module, DilatedHead):
            module.fused = "head" in parts
