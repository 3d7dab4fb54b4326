"""The operations of one step of a configuration, and what it keeps for its backward passes."""

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from bench.roofline_layers import Activation, Convolution, Layer, Networks, Norm, Pool, Shape, layers, networks
from bench.roofline_rules import (
    Rules,
    Work,
    backward,
    cross_entropy,
    forward,
    further,
    head_backward,
    head_forward,
    padded,
    softmax_backward,
    softmax_forward,
)
from simfast.config import Config

# Parameters that a launch of torch's multi-tensor kernels takes, about; a step at the paper's size was counted.
TENSORS = 36
# Launches counted on the stub GPU that no rule here gives: of an adversarial loss, forward and backward; of what is
# remembered of the source and of matching the target, without and with the gate.
ADVERSARIAL_LAUNCHES = 14
MATCHING_LAUNCHES = {"none": (9, 12), "released": (10, 15)}


class Step:
    """One step of a configuration on a GPU, with the transfer of images left out.

    Args:
        config: of the run; `fuse` and `memory` say how it runs.
        without_norms: products take over all of batch norm, which is not built; see `further` of the rules.
    """

    def __init__(self, config: Config, without_norms: bool = False):
        self.config, self.rules = config, Rules.of(config)
        self.without_norms = without_norms
        self.networks: Networks = networks(config)
        self.sizes = {"source": config.source_size, "target": config.target_size}
        if config.method == "target-only":
            self.sizes["source"] = config.target_size
        self.layers = {domain: self._layers(domain) for domain in self.sizes}

    def _layers(self, domain: str) -> list[Layer]:
        width, height = self.sizes[domain]
        found = list(layers(self.networks.model, (self.config.batch_size, 3, height, width)))
        # The matching and the head: the two consumers of the features.
        last = max((place for place, layer in enumerate(found) if isinstance(layer, Norm)), default=None)
        if last is not None and self._matched(domain):
            found[last] = replace(found[last], two_gradients=True)
        return found

    def _matched(self, domain: str) -> bool:
        """Whether matching gives the features a gradient."""
        return domain == "target" and self.config.method == "aa+sim"

    def trains(self, domain: str) -> bool:
        """Whether a domain's losses are propagated back."""
        return domain == "source" or self.config.uses_target

    def logits(self, domain: str) -> Shape:
        return _head(self.layers[domain])[0].outputs

    def features(self, domain: str) -> Shape:
        return _head(self.layers[domain])[0].inputs

    def maps(self, domain: str) -> Shape:
        width, height = self.sizes[domain]
        return (self.config.batch_size, len(self.config.classes), height, width)

    # ------------------------------------------------------------------------------------------------------------------
    # Operations
    # ------------------------------------------------------------------------------------------------------------------

    def works(self) -> list[Work]:
        return list(self._works())

    def _works(self) -> Iterator[Work]:
        config, rules = self.config, self.rules
        judged = rules.size if config.adversarial else None
        passes = 1 + config.uses_target + (config.self_training == "online")
        yield from self._segmentation("source", 0)
        yield from cross_entropy(self.logits("source"), self.maps("source"), judged, rules)
        if config.self_training == "online":
            yield from self._teacher()
            yield from self._segmentation("target", 1)
            yield from cross_entropy(self.logits("target"), self.maps("target"), None, rules)
        if config.uses_target:
            yield from self._segmentation("target", passes - 1)
            if config.stage == 2:
                yield from cross_entropy(self.logits("target"), self.maps("target"), None, rules)
        if config.adversarial:
            yield from self._adversarial()
        if config.method == "aa+sim":
            yield from self._matching()
        yield from self._weights()
        yield from self._optimisers()

    def _segmentation(self, domain: str, earlier: int) -> Iterator[Work]:
        """Forward and backward; `earlier` passes have left gradients of the weights."""
        found = further(self.layers[domain], self.rules) if self.without_norms else self.layers[domain]
        yield from self._inputs(domain)
        yield from self._casts(self.networks.model)
        backbone, head = _backbone(found), _head(found)
        for layer in backbone:
            yield from forward(layer, self.rules)
        yield from head_forward(head, self.rules)
        yield from head_backward(head, self.rules)
        for layer in reversed(backbone):
            yield from backward(layer, self.rules)
        yield from self._gradients(self.networks.model, earlier)

    def _inputs(self, domain: str) -> Iterator[Work]:
        """Planes to float32, shifted and scaled, stacked, channels-last, cast."""
        pixels = self.config.batch_size * 3 * math.prod(self.sizes[domain])
        yield Work("inputs", 11, (1 + 4 + 4 + 4 + 4) * pixels, 20 * pixels)
        if self.rules.size == 2:
            yield Work("inputs", 1, 4 * pixels, 2 * pixels)

    def _casts(self, network: nn.Module, copied: bool = True) -> Iterator[Work]:
        """Of the weights, in a forward pass; `copied`: unless once a step."""
        if self.rules.size == 4 or (copied and "weights" in self.rules.fused):
            return
        for parameter in network.parameters():
            if parameter.requires_grad:
                yield Work("casts", 1, 4 * parameter.numel(), 2 * parameter.numel())

    def _gradients(self, network: nn.Module, earlier: int) -> Iterator[Work]:
        """Of weights, to float32 and added to those of `earlier` passes."""
        trained = [p.numel() for p in network.parameters() if p.requires_grad]
        cast, n = self.rules.size == 2, sum(trained)
        if cast and "weights" in self.rules.fused:
            yield Work("casts", math.ceil(len(trained) / TENSORS), 6 * n, 4 * n)
            return
        for number in trained:
            if cast:
                yield Work("casts", 1, 2 * number, 4 * number)
            if earlier:
                yield Work("weight gradient adds", 1, 8 * number, 4 * number)

    def _weights(self) -> Iterator[Work]:
        """Copies once a step."""
        if self.rules.size == 2 and "weights" in self.rules.fused:
            for network in (self.networks.model, self.networks.discriminator):
                if network is not None:
                    sizes = [p.numel() for p in network.parameters() if p.requires_grad]
                    yield Work("casts", math.ceil(len(sizes) / TENSORS), 4 * sum(sizes), 2 * sum(sizes))

    def _teacher(self) -> Iterator[Work]:
        """Forward with stored statistics, nothing kept; and its average."""
        rules = replace(self.rules, frozen=True)
        yield from self._inputs("target")
        yield from self._casts(self.networks.model, copied=False)
        for layer in _backbone(self.layers["target"]):
            yield from forward(layer, rules)
        yield from head_forward(_head(self.layers["target"]), rules)
        yield from softmax_forward(self.logits("target"), self.maps("target"), replace(rules, size=4))
        elements = math.prod(self.maps("target"))
        yield Work("losses and maps", 10, 4 * elements, 12 * elements // len(self.config.classes))
        n = sum(p.numel() for p in self.networks.model.parameters())
        yield Work("optimisers", 12, 20 * n, 12 * n)

    def _adversarial(self) -> Iterator[Work]:
        """D's judgement of the target for the network, then of both domains for D."""
        rules = self.rules
        logits, target = self.logits("target"), self.maps("target")
        yield from softmax_forward(logits, target, rules)
        yield from self._judge("target", weights=False, inputs=True)
        yield from softmax_backward(logits, target, rules)
        for earlier, domain in enumerate(("source", "target")):
            yield from self._judge(domain, weights=True, inputs=False)
            yield from self._gradients(self.networks.discriminator, earlier)

    def discriminator(self, domain: str) -> list[Layer]:
        """Its layers on a domain's maps."""
        found = list(layers(self.networks.discriminator, self.maps(domain)))
        if "maps" in self.rules.fused:
            first, shape = found[0], self.maps(domain)
            wide = padded(shape[1])
            inputs, weight = (shape[0], wide, *shape[2:]), (first.weight[0], wide, *first.weight[2:])
            found[0] = replace(first, inputs=inputs, weight=weight)
        return found

    def _judge(self, domain: str, weights: bool, inputs: bool) -> Iterator[Work]:
        found, n = self.discriminator(domain), self.rules.bytes(self.maps(domain))
        yield from self._casts(self.networks.discriminator)
        if "maps" not in self.rules.fused:  # planes, which the convolution takes channels-last
            yield Work("D", 1, n, n)
        for layer in found:
            yield from forward(layer, self.rules, "D")
        yield Work("D", ADVERSARIAL_LAUNCHES, 0, 0)
        for layer in reversed(found):
            yield from backward(layer, self.rules, "D", weights, inputs)

    def _matching(self) -> Iterator[Work]:
        """What is remembered of the source; matching of the target and its gradient."""
        config = self.config
        classes, rows = config.classes, config.stuff_rows
        channels = self.features("source")[1]
        slots = config.batch_size * (len(classes.stuff) + len(classes.things) * config.max_instances)
        bank = rows * (len(classes.stuff) + len(classes.things) * config.max_instances)
        wide = config.bank_dtype == "float32" or (config.bank_dtype == "auto" and self.rules.size == 4)
        means, vector = 4 * slots * channels, (4 if wide else 2) * channels
        for domain, launches in zip(("source", "target"), MATCHING_LAUNCHES[config.gate], strict=True):
            features = self.rules.bytes(self.features(domain))
            labels = math.prod(self.logits(domain)) * 4 + 24 * math.prod(self.logits(domain)[2:])
            if domain == "source":
                yield Work("matching", launches, features + labels + means, means + slots * vector)
            else:
                yield Work("matching", launches, features + labels + 2 * means + bank * vector, features + 2 * means)
                if "norms" not in self.rules.fused or not any(isinstance(one, Norm) for one in self.layers[domain]):
                    yield Work("gradient adds", 1, 2 * features, features)

    def _optimisers(self) -> Iterator[Work]:
        """SGD: parameter, gradient and momentum read, two written; Adam: one moment more."""
        config, model = self.config, self.networks.model
        # As simfast.training.optimizers.sgd groups them.
        listed = model.listings() if config.backbone_updates == "listed" else {}
        trained = [p for p in model.parameters() if p.requires_grad]
        updates = max(listed.values(), default=1)
        number = sum(p.numel() * listed.get(p, 1) for p in trained)
        momentum = bool(config.momentum)
        yield Work("optimisers", updates * math.ceil(len(trained) / TENSORS), (8 + 4 * momentum) * number,
                   (4 + 4 * momentum) * number)  # fmt: skip
        if self.networks.discriminator is not None:
            n = sum(p.numel() for p in self.networks.discriminator.parameters())
            yield Work("optimisers", 2, 16 * n, 12 * n)
        if config.precision == "fp16":
            n = sum(p.numel() for p in trained)
            yield Work("optimisers", math.ceil(len(trained) / TENSORS), 4 * n, 4 * n)

    # ------------------------------------------------------------------------------------------------------------------
    # Kept for the backward pass
    # ------------------------------------------------------------------------------------------------------------------

    def kept(self, domain: str) -> dict[str, int]:
        """Bytes that the backward pass of a domain's losses finds kept, by what keeps them, parameters left out."""
        rules, result = self.rules, {}

        def keep(what: str, size: int) -> None:
            result[what] = result.get(what, 0) + size

        width, height = self.sizes[domain]
        keep("inputs", rules.bytes((self.config.batch_size, 3, height, width)))
        for layer in self.layers[domain]:
            if isinstance(layer, Convolution) and rules.size == 2 and not self._copied_once(layer):
                keep("weights in 16 bits", 2 * math.prod(layer.weight))
            elif isinstance(layer, Norm):
                self._keep_norm(layer, keep)
            elif isinstance(layer, Activation):
                keep("results of ReLU", rules.bytes(layer.shape))
            elif isinstance(layer, Pool):
                keep("max-pool", (rules.size + 8) * math.prod(layer.outputs))
        if rules.size == 2 and "head" in rules.fused and "weights" not in rules.fused:
            keep("weights in 16 bits", 2 * sum(math.prod(one.weight) for one in _head(self.layers[domain])))
        self._keep_losses(domain, keep)
        return result

    def _copied_once(self, layer: Convolution) -> bool:
        return "weights" in self.rules.fused or (layer.head and "head" in self.rules.fused)

    def _keep_norm(self, layer: Norm, keep) -> None:
        rules, n = self.rules, self.rules.bytes(layer.shape)
        if not ("norms" in rules.fused and rules.frozen):
            keep("inputs of batch norms", n)
        if not rules.frozen:
            keep("inputs of batch norms", 8 * layer.shape[1])
        if layer.relu and not (layer.inside and (rules.low or self.without_norms)):
            keep("results of ReLU", n)

    def _keep_losses(self, domain: str, keep) -> None:
        config, rules = self.config, self.rules
        if domain == "source" or config.stage == 2:
            keep("losses and maps", 4 * math.prod(self.logits(domain)))
        if domain == "source" or not config.adversarial:
            return
        elements = math.prod(self.maps(domain))
        if "maps" not in rules.fused:
            keep("losses and maps", rules.size * elements)
        for index, layer in enumerate(self.discriminator(domain)):
            if isinstance(layer, Activation):
                keep("D", rules.bytes(layer.shape))
            else:
                if rules.size == 2 and "weights" not in rules.fused:
                    keep("D", 2 * math.prod(layer.weight))
                if index == 0:
                    keep("D", rules.bytes(layer.inputs))


def _backbone(found: list[Layer]) -> list[Layer]:
    return [layer for layer in found if not (isinstance(layer, Convolution) and layer.head)]


def _head(found: list[Layer]) -> list[Convolution]:
    return [layer for layer in found if isinstance(layer, Convolution) and layer.head]
