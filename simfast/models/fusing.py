"""Which parts of a network run as fewer, larger operations: the setting `fuse`, on its modules."""

import copy
from collections.abc import Set

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

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


def folded(network: nn.Module) -> nn.Module:
    """A copy for evaluation, whose convolutions have the scale and shift of the batch norm behind them in their own
    weights and biases: the same results but for rounding, without a pass for a batch norm.
    """
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        parts = dict(module.named_children())
        for name, norm in parts.items():
            convolution = parts.get("0" if name == "1" else name.replace("bn", "conv"))
            if not isinstance(norm, BatchNorm) or not isinstance(convolution, nn.Conv2d):
                continue
            running = norm.running_mean, norm.running_var, norm.eps
            own = convolution.weight, convolution.bias
            convolution.weight, convolution.bias = fuse_conv_bn_weights(*own, *running, norm.weight, norm.bias)
            norm.folded = True
    return network
