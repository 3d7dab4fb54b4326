"""The layers of a step's networks with their shapes, seen by hooks while the real modules run on the meta device.

Shapes are [B, C, H, W]. Hooks see modules alone, so a residual add and a gradient that two consumers of a map add up
are told from the block that they belong to.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from simfast.config import Config
from simfast.models import Discriminator, deeplab_v2
from simfast.models.deeplab import HEAD_DILATIONS, DeepLabV2
from simfast.models.layers import BasicBlock, Bottleneck, Downsample

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    inputs: Shape
    outputs: Shape
    weight: Shape
    stride: int
    bias: bool
    first: bool = False
    """Of its network: what comes needs no gradient, if it is an image."""
    head: bool = False
    norms: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes read and written for batch norms by its products, see `further` of the rules."""

    @property
    def kernel(self) -> int:
        return self.weight[-1]

    @property
    def macs(self) -> int:
        """Multiplications of one of its three products."""
        return math.prod(self.outputs) * math.prod(self.weight[1:])


@dataclass(frozen=True)
class Norm:
    shape: Shape
    product: bool
    """Of what a 1x1 convolution of stride 1 gives."""
    relu: bool = True
    residual: bool = False
    inside: bool = True
    """Neither the last of its block nor outside of one: nothing but the next convolution reads what it gives."""
    two_gradients: bool = False
    """What it gives has two consumers, as the next block's first convolution and its residual."""


@dataclass(frozen=True)
class Activation:
    """ReLU in place without a batch norm, or leaky ReLU."""

    shape: Shape


@dataclass(frozen=True)
class Pool:
    inputs: Shape
    outputs: Shape


@dataclass(frozen=True)
class Fork:
    """The input of a block, whose gradient is a sum of two."""

    shape: Shape
    in_norm: bool
    """Whether a batch norm gave it, which could take both (`Norm.two_gradients`)."""


Layer = Convolution | Norm | Activation | Pool | Fork


@contextmanager
def _hooks(network: nn.Module, hook, before) -> Iterator[None]:
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_hook(lambda m, x, y, name=name: hook(name, m, _map(x[0]), _map(y))))
        handles.append(module.register_forward_pre_hook(lambda m, x: before(m, _map(x[0]))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _map(x: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What comes or is given as one map, or as one for two consumers."""
    return x if isinstance(x, torch.Tensor) else x[0]


@cache
def layers(network: nn.Module, shape: Shape) -> tuple[Layer, ...]:
    """What a network runs for an input of a shape, in its order.

    Args:
        network: DeepLabV2 or the discriminator, on the meta device.
        shape: of what it is given.
    """
    found: list[Layer] = []
    stack: list[nn.Module] = []

    def before(module: nn.Module, x: torch.Tensor) -> None:
        stack.append(module)
        if isinstance(module, BasicBlock | Bottleneck):
            if in_norm := isinstance(found[-1], Norm):
                found[-1] = replace(found[-1], two_gradients=True)
            found.append(Fork(tuple(x.shape), in_norm))

    def after(name: str, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        stack.pop()
        head = isinstance(network, DeepLabV2) and name.startswith(f"{network.head_name}.")
        inputs = tuple(x.shape)
        if isinstance(module, nn.Conv2d):
            first = not any(isinstance(layer, Convolution) for layer in found)
            weight, bias = tuple(module.weight.shape), module.bias is not None
            found.append(Convolution(inputs, tuple(y.shape), weight, module.stride[0], bias, first, head))
            if isinstance(network, Discriminator) and module is not network.classifier:
                found.append(Activation(tuple(y.shape)))
        elif isinstance(module, nn.BatchNorm2d):
            before = found[-1]
            product = isinstance(before, Convolution) and before.kernel == before.stride == 1
            in_block = any(isinstance(one, BasicBlock | Bottleneck) for one in stack)
            branch = any(isinstance(one, Downsample) for one in stack)
            found.append(Norm(inputs, product, relu=not branch, inside=in_block and not branch))
        elif isinstance(module, BasicBlock | Bottleneck):
            last = max(i for i, layer in enumerate(found) if isinstance(layer, Norm))
            found[last] = replace(found[last], residual=True, inside=False)
        elif isinstance(module, nn.ReLU) and len(stack) == 2:  # VGG16's; a ResNet's are told from its batch norms
            found.append(Activation(inputs))
        elif isinstance(module, nn.MaxPool2d):
            found.append(Pool(inputs, tuple(y.shape)))

    with torch.no_grad(), _hooks(network, after, before):
        network(torch.empty(shape, device="meta"))
    return tuple(found)


@dataclass(frozen=True)
class Networks:
    """A configuration's networks on the meta device."""

    model: DeepLabV2
    discriminator: Discriminator | None


def networks(config: Config) -> Networks:
    dilations = tuple(config.head_dilations or HEAD_DILATIONS)
    style = "caffe" if config.resnet_style == "auto" else config.resnet_style
    return _networks(config.arch, len(config.classes), dilations, config.batch_norm, style, config.adversarial)


@cache
def _networks(arch: str, classes: int, dilations: tuple[int, ...], mode: str, style: str, judged: bool) -> Networks:
    with torch.device("meta"):
        model = deeplab_v2(arch, classes, dilations, mode, style)
        return Networks(model, Discriminator(classes) if judged else None)
