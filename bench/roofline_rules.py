"""What each operation of a step reads from memory and writes to it, by rules; nothing here was measured.

A map is counted once for each kernel that reads or writes it, as if no cache held it; what has the size of the channels
alone is left out. N is a map's size in bytes. As torch runs it, on a GPU, channels-last:

- convolution: input and weight are read, the output written; the gradients of input and weight likewise. A strided 1x1
  one reads the pixels that it takes. A bias is added in place by a kernel of its own, its gradient a sum.
- batch norm: statistics read N, the transform reads and writes N; backward, the sums read two N (gradient and x),
  the gradient reads them again and writes N. Seven launches in bf16, which cuDNN's is not used for, else two.
- ReLU reads and writes N; backward it reads two N (gradient and result) and writes one. A residual add, and that of a
  gradient which two consumers of a map give, read two N and write one.
- cast: a weight is read in four bytes and written in two at each forward pass; its gradient read in two, written in
  four. The second domain's gradient is added: eight bytes read, four written.

Fused (the setting `fuse`), per map:

- norms: statistics read N; the rest reads N and the residual and writes N. Backward, the sums read the gradient (both,
  where two consumers give one), x, and the result where there is a residual, and then write the masked gradient,
  which is the residual's; a second pass reads gradient and x and writes N. Two launches each way. Frozen batch norms:
  one each way.
- cooperative: those in one launch each way.
- products: what a 1x1 convolution of stride 1 gives has its statistics already.
- weights: copied once a step; the gradients added to 32 bits by a few launches after each backward pass.
- head: one product of the features with all taps of all branches, and a pass that adds its columns, shifted.
- maps: upsampling, softmax and cross entropy read logits and labels and write the map, of 24 channels instead of 19,
  as the discriminator's first convolution wants it; backward they read its gradient.
- memory low: the result of a batch norm inside a block is computed once more: N read, N written. Not of a frozen one.
- further (not built): statistics, sums and masks at the end of the products that write maps and gradients, and batch
  norm's affine map at the beginning of those that read them. See `further`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench.roofline_layers import Activation, Convolution, Fork, Layer, Norm, Pool, Shape
from simfast.config import Config

BAND = 1 << 22
"""float32 values of a band of rows in the plain losses of upsampled logits."""
TILE = 64
"""Channels of the output that a product computes at least."""
WIDE_MAP = 8
"""The discriminator's input is padded to a multiple of so many channels by `maps`."""


class Work(NamedTuple):
    """One operation."""

    kind: str
    launches: int
    read: float
    written: float
    flops: float = 0
    """Of products in the step's precision."""
    tiled: float = 0
    """The same with the output's channels rounded up to tiles."""
    fp32: float = 0
    """Of float32 products without tensor cores."""


@dataclass(frozen=True)
class Rules:
    """How a step runs.

    Args:
        size: bytes of an element of a map.
        cudnn: whether cuDNN has a batch norm for it.
        frozen: whether batch norms take stored statistics.
        fused: `Config.fused`.
        low: memory "low".
    """

    size: int
    cudnn: bool
    frozen: bool
    fused: frozenset[str]
    low: bool = False

    @staticmethod
    def of(config: Config) -> "Rules":
        """On a GPU, where `auto` is bf16."""
        precision = "bf16" if config.precision == "auto" else config.precision
        frozen = config.batch_norm == "frozen"
        low = config.memory == "low" and not frozen  # of those nothing is computed again
        return Rules(4 if precision == "fp32" else 2, precision != "bf16", frozen, config.fused, low)

    def bytes(self, shape: Shape) -> int:
        return self.size * math.prod(shape)


def kind_of(layer: Convolution) -> str:
    return f"{layer.kernel}x{layer.kernel} convolutions"


def forward(layer: Layer, rules: Rules, kind: str | None = None) -> Iterator[Work]:
    """Of a layer; `kind` in place of its own."""
    if isinstance(layer, Convolution):
        yield _product(layer, rules, "forward", kind)
        if layer.bias:
            n = rules.bytes(layer.outputs)
            yield Work(kind or "biases of convolutions", 1, n, n)
    elif isinstance(layer, Norm):
        yield from _norm_forward(layer, rules)
    elif isinstance(layer, Activation):
        n = rules.bytes(layer.shape)
        yield Work(kind or "ReLU", 1, n, n)
    elif isinstance(layer, Pool):
        yield Work("max-pool", 1, rules.bytes(layer.inputs), (rules.size + 8) * math.prod(layer.outputs))


def backward(
    layer: Layer, rules: Rules, kind: str | None = None, weights: bool = True, inputs: bool = False
) -> Iterator[Work]:
    """The same of its backward pass.

    Args:
        weights: whether the gradients of weights are wanted.
        inputs: whether that of the network's input is.
    """
    if isinstance(layer, Convolution):
        if inputs or not layer.first:
            yield _product(layer, rules, "input gradients", kind)
        if weights:
            yield _product(layer, rules, "weight gradients", kind)
            if layer.bias:
                yield Work(kind or "biases of convolutions", 1, rules.bytes(layer.outputs), 0)
    elif isinstance(layer, Norm):
        yield from _norm_backward(layer, rules)
    elif isinstance(layer, Activation):
        n = rules.bytes(layer.shape)
        yield Work(kind or "ReLU", 1, 2 * n, n)
    elif isinstance(layer, Pool):
        read = (rules.size + 8) * math.prod(layer.outputs)
        yield Work("max-pool", 1, read, rules.bytes(layer.inputs))
    elif isinstance(layer, Fork) and not (layer.in_norm and "norms" in rules.fused):
        n = rules.bytes(layer.shape)
        yield Work("gradient adds", 1, 2 * n, n)


def _product(layer: Convolution, rules: Rules, which: str, kind: str | None) -> Work:
    taken = rules.bytes(layer.inputs)
    if layer.kernel == 1:
        taken = rules.size * layer.inputs[1] * math.prod(layer.outputs) // layer.outputs[1]
    weight, given = rules.size * math.prod(layer.weight), rules.bytes(layer.outputs)
    read, written, columns = {
        "forward": (taken + weight, given, layer.weight[0]),
        "input gradients": (given + weight, rules.bytes(layer.inputs), layer.weight[1]),
        "weight gradients": (given + taken, weight, layer.weight[0]),
    }[which]
    read, written = (a + b for a, b in zip((read, written), layer.norms.get(which, (0, 0)), strict=True))
    tiled = 2 * layer.macs * math.ceil(columns / TILE) * TILE / columns
    return Work(kind or f"{kind_of(layer)}, {which}", 1, read, written, 2 * layer.macs, tiled)


# ----------------------------------------------------------------------------------------------------------------------
# Batch norm
# ----------------------------------------------------------------------------------------------------------------------


def _norm_forward(layer: Norm, rules: Rules) -> Iterator[Work]:
    n, name = rules.bytes(layer.shape), "batch norm, forward"
    if "norms" in rules.fused:
        known = rules.frozen or (layer.product and "products" in rules.fused)
        if not known:  # in one launch, whose programs wait for each other, what is read stays the same
            yield Work(name, "cooperative" not in rules.fused, n, 0)
        yield Work(name, 1, n * (1 + layer.residual), n)
    else:
        if not rules.frozen:
            yield Work(name, 0 if rules.cudnn else 3, n, 0)
        yield Work(name, 1, n, n)
        if layer.residual:
            yield Work("residual adds", 1, 2 * n, n)
        if layer.relu:
            yield Work("ReLU", 1, n, n)


def _norm_backward(layer: Norm, rules: Rules) -> Iterator[Work]:
    n, name = rules.bytes(layer.shape), "batch norm, backward"
    if "norms" in rules.fused:
        if rules.low and layer.inside:
            yield Work(name, 1, n, n)
        gradients = 1 + layer.two_gradients
        if rules.frozen:
            yield Work(name, 1, n * (gradients + layer.relu), n * (1 + layer.residual))
        else:
            sums = "cooperative" not in rules.fused
            yield Work(name, sums, n * (gradients + 1 + layer.residual), n * layer.residual)
            yield Work(name, 1, 2 * n, n)
    else:
        if layer.relu:
            yield Work("ReLU", 1, 2 * n, n)
        if rules.frozen:
            yield Work(name, 1, n, n)
        else:
            yield Work(name, 0 if rules.cudnn else 2, 2 * n, 0)
            yield Work(name, 1, 2 * n, n)


def further(found: list[Layer], rules: Rules) -> list[Layer]:
    """The layers where products take over all of batch norm, which is not built: with what they then move beyond
    their own.

    Forward, the product that reads a result takes x in its place. A map with a residual must still be written, for
    the next one: the residual is read and the result written beside x. Backward, the product that gives the gradient
    reads x to mask and to sum, with a residual also the result and the other gradient; both products that take the
    gradient read x once more.
    """
    result = list(found)

    def add(place: int, which: str, read: int, written: int = 0) -> None:
        layer = result[place]
        before = layer.norms.get(which, (0, 0))
        result[place] = replace(layer, norms=layer.norms | {which: (before[0] + read, before[1] + written)})

    products = [place for place, layer in enumerate(found) if isinstance(layer, Convolution)]
    for place, layer in enumerate(found):
        if isinstance(layer, Norm):
            n = rules.bytes(layer.shape)
            after = min(one for one in products if one > place)
            add(after, "forward", n * layer.residual, n * layer.residual)
            add(after, "input gradients", n * (1 + layer.residual + layer.two_gradients))
            for which in ("input gradients", "weight gradients"):
                add(place - 1, which, n)
    return [layer for layer in result if not isinstance(layer, Norm)]


# ----------------------------------------------------------------------------------------------------------------------
# Head, losses and maps
# ----------------------------------------------------------------------------------------------------------------------


def head_forward(branches: list[Convolution], rules: Rules) -> Iterator[Work]:
    if "head" not in rules.fused:
        for branch in branches:
            yield from forward(branch, rules, "head")
        n = rules.bytes(branches[0].outputs)
        yield from [Work("head", 1, 2 * n, n)] * (len(branches) - 1)
        return
    x, columns, weight = _head_sizes(branches, rules)
    more = branches[0].norms.get("forward", (0, 0))
    yield Work(
        "head",
        2,
        x + weight + more[0],
        columns + weight + more[1],
        *_head_flops(branches, math.prod(columns_of(branches))),
    )
    yield Work("head", 1, columns, rules.bytes(branches[0].outputs))


def head_backward(branches: list[Convolution], rules: Rules) -> Iterator[Work]:
    """With the adds of the features' gradients."""
    if "head" not in rules.fused:
        for branch in branches:
            yield from backward(branch, rules, "head")
        n = rules.bytes(branches[0].inputs)
        yield from [Work("gradient adds", 1, 2 * n, n)] * (len(branches) - 1)
        return
    x, columns, weight = _head_sizes(branches, rules)
    yield Work("head", 1, rules.bytes(branches[0].outputs), columns)
    more = branches[0].norms.get("input gradients", (0, 0))
    yield Work("head", 1, columns + weight + more[0], x, *_head_flops(branches, branches[0].inputs[1]))
    yield Work("head", 2, columns + x, 2 * weight, *_head_flops(branches, math.prod(columns_of(branches))))


def columns_of(branches: list[Convolution]) -> tuple[int, int]:
    """Taps of all branches, and classes."""
    return sum(branch.kernel**2 for branch in branches), branches[0].weight[0]


def _head_sizes(branches: list[Convolution], rules: Rules) -> tuple[int, int, int]:
    """Bytes of the features, of the product's columns, and of the weight as one matrix."""
    images, channels, height, width = branches[0].inputs
    columns = math.prod(columns_of(branches))
    pixels = images * height * width
    return rules.size * pixels * channels, rules.size * pixels * columns, rules.size * channels * columns


def _head_flops(branches: list[Convolution], columns: int) -> tuple[float, float]:
    flops = 2 * sum(branch.macs for branch in branches)
    return flops, flops * math.ceil(columns / TILE) * TILE / columns


def _bands(shape: Shape) -> int:
    images, classes, height, width = shape
    return math.ceil(height / max(1, BAND // (images * classes * width)))


def _upsampling(logits: Shape, shape: Shape) -> float:
    """FLOP of the two matrix products of `simfast.models.upsampled`, one way."""
    images, classes, height, width = shape
    return 2 * images * classes * height * logits[3] * (logits[2] + width)


def cross_entropy(logits: Shape, shape: Shape, map_size: int | None, rules: Rules) -> Iterator[Work]:
    """Forward, which finds the gradient too; shape [B, K, H, W] is that of the map, map_size the bytes of its elements.

    Banded: two products (4 bytes an element written), log softmax (8), its exponential (8), comparison and
    subtraction (1 + 5 + 12), two masks (16), the product's reading (4), and the map.
    """
    elements, pixels, small = math.prod(shape), math.prod(shape) // shape[1], 4 * math.prod(logits)
    if "maps" in rules.fused:
        written = 0 if map_size is None else map_size * pixels * padded(shape[1])
        yield Work("losses and maps", 2, small + pixels, written + small)
        return
    between = 4 * elements * logits[3] / shape[3]
    read = (4 + 4 + 1 + 8 + 8 + 4) * elements + 40 * pixels + 2 * between + 2 * small
    written = (4 + 4 + 4 + 1 + 4 + 4 + 8) * elements + 26 * pixels + 2 * between + small
    if map_size is not None:
        read, written = read + 4 * elements, written + map_size * elements
    yield Work("losses and maps", 28 * _bands(shape) + 2, read, written, fp32=2 * _upsampling(logits, shape))


def softmax_forward(logits: Shape, shape: Shape, rules: Rules) -> Iterator[Work]:
    """Banded: two products (4 bytes an element written), softmax (8), the map."""
    elements, small = math.prod(shape), 4 * math.prod(logits)
    if "maps" in rules.fused:
        yield Work("losses and maps", 1, small, rules.size * elements // shape[1] * padded(shape[1]))
        return
    between = 4 * elements * logits[3] / shape[3]
    read, written = 8 * elements + between + small, (8 + rules.size) * elements + between
    yield Work("losses and maps", 8 * _bands(shape) + 1, read, written, fp32=_upsampling(logits, shape))


def softmax_backward(logits: Shape, shape: Shape, rules: Rules) -> Iterator[Work]:
    """Banded: the map in float32, its product with the gradient, their sum and difference, two products."""
    elements, small = math.prod(shape), 4 * math.prod(logits)
    if "maps" in rules.fused:
        yield Work("losses and maps", 1, rules.size * elements // shape[1] * padded(shape[1]) + small, small)
        return
    between = 4 * elements * logits[3] / shape[3]
    read, written = (2 * rules.size + 4 + 4 + 4 + 8 + 4) * elements + between, 16 * elements + between + small
    yield Work("losses and maps", 14 * _bands(shape) + 1, read, written, fp32=_upsampling(logits, shape))


def padded(channels: int) -> int:
    return math.ceil(channels / WIDE_MAP) * WIDE_MAP
