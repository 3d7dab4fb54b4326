"""The networks of a run as its step calls them: normalised inputs, its precision and layout, compiled, averaged."""

import contextlib

import torch
from torch import Tensor, nn

from simfast.config import Config
from simfast.models.fusing import folded, fuse
from simfast.models.inputs import normalise
from simfast.runtime import distributed
from simfast.training.engines import measured_engines
from simfast.training.modes import DTYPES
from simfast.training.self_training import MeanTeacher
from simfast.training.weight_copies import WeightCopies


class Networks:
    """The segmentation network, the discriminator and the mean teacher on one device; see `Trainer` for the arguments.

    Args:
        mode, precision: as `simfast.training.modes` resolved them.

    Attributes:
        convention: the input that the segmentation network expects.
        teacher: None without online self-training.
        map_dtype: of the softmax maps that the discriminator judges, what its first convolution would round them to;
            None without it.
        engines: what chooses how convolutions of the segmentation network are computed; None where torch does.

    Raises:
        ValueError: engines that cannot be measured here; the settings ask for "weights" in several processes.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        discriminator: nn.Module | None,
        convention: str,
        mode: str,
        precision: str,
        device: torch.device,
    ):
        self.model, self.discriminator, self.convention = model, discriminator, convention
        self._config, self._precision, self._device = config, precision, device
        self.engines = measured_engines(config, mode, device)
        if "weights" in config.fused and distributed.size() > 1:
            # Whose hooks wait for gradients of the parameters themselves.
            raise ValueError(f"fuse: must be without weights in several processes, got {', '.join(config.fuse)}")
        self.map_dtype = None if discriminator is None else DTYPES[precision]
        networks = [network for network in (model, discriminator) if network is not None]
        # Where channels-last convolutions are the fast ones: GPUs, and CPUs in bf16.
        self._channels_last = device.type == "cuda" or precision != "fp32"
        for network in networks:
            fuse(network, config.fused, config.memory == "low")
            network.to(device)
            if self._channels_last:
                network.to(memory_format=torch.channels_last)
        self.teacher = MeanTeacher(model, config.teacher_decay) if config.self_training == "online" else None
        called = [_compiled(network) if "compile" in mode else network for network in networks]
        self._called = {net: distributed.averaging(net, call) for net, call in zip(networks, called, strict=True)}
        self._copies = None
        if "weights" in config.fused and precision != "fp32":
            self._copies = WeightCopies(networks, DTYPES[precision])
            twins = self._copies.twins.items()
            self._on_copies = {net: _compiled(twin) if "compile" in mode else twin for net, twin in twins}
        if self.teacher is not None:
            self._teach = _compiled(self.teacher.network) if "compile" in mode else self.teacher.network

    def evaluated(self) -> nn.Module:
        """The segmentation network as it is now, as evaluation runs it."""
        return folded(self.model) if "norms" in self._config.fused else self.model

    def segment(self, images: Tensor, domain: str) -> tuple[Tensor, Tensor]:
        """Features and logits of uint8 images [B, 3, H, W]."""
        images = self._normalised(images)
        called, last = self._caller(self.model), domain == "target" or not self._config.uses_target
        with self._autocast(), self.engines or contextlib.nullcontext(), distributed.backward_follows(called, last):
            return called(images, domain)

    def judge(self, maps: Tensor, last: bool) -> Tensor:
        """The discriminator's outputs for softmax maps [B, K, H, W].

        Args:
            last: whether what is propagated back from here is the step's last gradient of the discriminator.
        """
        called = self._caller(self.discriminator)
        with self._autocast(), distributed.backward_follows(called, last):
            return called(maps)

    def fresh_weights(self) -> contextlib.AbstractContextManager:
        """A step, in which weights stay as they are now until the optimisers change them."""
        return contextlib.nullcontext() if self._copies is None else self._copies.fresh()

    def gather_gradients(self) -> None:
        """To be called after each backward pass of a step: then the parameters have its gradients."""
        if self._copies is not None:
            self._copies.gather_gradients()

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits of uint8 target images."""
        with self._autocast(), self.engines or contextlib.nullcontext():
            return self._teach(self._normalised(images), "target")[1]

    def _caller(self, network: nn.Module) -> nn.Module:
        """What runs for a network: outside of a step always itself."""
        if self._copies is None or not self._copies.in_use:
            return self._called[network]
        self._copies.follow(network)
        return self._on_copies[network]

    def _normalised(self, images: Tensor) -> Tensor:
        images = normalise(images, self.convention)
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self._precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, DTYPES[self._precision])


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, dynamic=False, fullgraph=True)
