"""One training step: both networks, matching, both optimisers (Eq. 12, Eq. 13); eager, compiled or as a CUDA graph."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simfast.config import Config
from simfast.data.transfer import transfer
from simfast.matching import StuffInstanceMatching, correct_labels, predicted_labels
from simfast.models.upsampled import upsampled_segmentation_loss, upsampled_softmax
from simfast.models.weights import normalise
from simfast.runtime import distributed
from simfast.training.aside import Aside
from simfast.training.capture import CannotCapture, Captured
from simfast.training.losses import adversarial_loss
from simfast.training.optimizers import adam, settle, sgd
from simfast.training.self_training import MeanTeacher, draw_order, label_confidently, mix

log = logging.getLogger("simfast")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def poly(base: float, step: int, config: Config) -> float:
    """Learning rate at a step of the poly schedule (section 5.2)."""
    return base * (1 - step / config.schedule_steps) ** config.power


def resolve_mode(asked: str, device: torch.device) -> str:
    """The step mode that is meant on a device.

    Raises:
        ValueError: a CUDA graph was asked for and there is no GPU, or there are several processes.
    """
    if distributed.size() > 1:
        if "graph" in asked:
            raise ValueError(f"step_mode: must be eager, compile or auto with several processes, got {asked!r}")
        return "eager" if asked == "auto" else asked
    if "graph" in asked and device.type != "cuda":
        raise ValueError(f"step_mode: must be eager, compile or auto without a GPU, got {asked!r}")
    if asked == "auto":
        return "graph" if device.type == "cuda" else "eager"
    return asked


def resolve_precision(asked: str, device: torch.device) -> str:
    """The precision that is meant on a device: auto takes bf16 where the GPU computes in it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


class Terms(NamedTuple):
    """What the images of one domain give a step, before anything is propagated back."""

    losses: dict[str, Tensor]
    """Unweighted, by name: float32 scalars."""
    features: Tensor
    """[B, C, h, w]."""
    logits: Tensor
    """[B, K, h, w]."""
    labels: Tensor | None
    """int64 [B, h, w], of the regions that are matched: L_C or L_P; None without matching."""
    maps: Tensor | None
    """[B, K, H, W], the softmax maps that D judges; None without it."""


class Trainer:
    """The networks of a run with their optimisers, and what one step does to them.

    Args:
        config: the run's settings.
        model: the segmentation network, images, domain -> (features, logits).
        discriminator: of softmax maps; None for methods without adversarial adaptation.
        matching: None for methods without it.
        convention: the input that model expects.
        device: where they all go.

    Attributes:
        mode, precision: what `step_mode` and `precision` of the settings became on this device.

    Raises:
        ValueError: a mode that the device does not have.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        discriminator: nn.Module | None,
        matching: StuffInstanceMatching | None,
        convention: str,
        device: torch.device,
    ):
        self.mode = resolve_mode(config.step_mode, device)
        self.precision = resolve_precision(config.precision, device)
        self.config, self.model, self.convention, self.device = config, model, convention, device
        self.discriminator, self.matching = discriminator, matching
        for part in (model, discriminator, matching):
            if part is not None:
                part.to(device)
        # Where channels-last convolutions are the fast ones: GPUs, and CPUs in bf16.
        self._channels_last = device.type == "cuda" or self.precision != "fp32"
        if self._channels_last:
            for network in self._networks():
                network.to(memory_format=torch.channels_last)
        self.teacher = MeanTeacher(model, config.teacher_decay) if config.self_training == "online" else None
        self.optimizer = sgd(config, model)
        self.optimizer_d = None if discriminator is None else adam(config, discriminator)
        bases = [group["lr"] for optimizer in self._optimizers() for group in optimizer.param_groups]
        # On the device, where a captured step finds the rate of the day.
        self._rates = [(torch.zeros((), device=device), base) for base in bases]
        self._settle_optimizers()
        self.scaler = None
        if self.precision == "fp16":
            self.scaler = torch.amp.GradScaler(device.type)
            self.scaler.scale(torch.zeros((), device=device))  # creates its tensors, which a graph must not
        self._compiled = {}
        if "compile" in self.mode:
            self._compiled = {net: torch.compile(net, dynamic=False, fullgraph=True) for net in self._networks()}
        self._called = {net: distributed.averaging(net, self._compiled.get(net, net)) for net in self._networks()}
        self._teach = self.teacher and self.teacher.network
        if self.teacher is not None and "compile" in self.mode:
            self._teach = torch.compile(self.teacher.network, dynamic=False, fullgraph=True)
        self._aside = Aside(device)
        self._captured = self._new_graph()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the networks, the banks and the optimisers."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"convention": self.convention}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; other keys of state are left alone."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.convention = state["convention"]
        self._settle_optimizers()
        self._captured = self._new_graph()

    def step(
        self,
        step: int,
        source: Tensor,
        source_labels: Tensor,
        target: Tensor | None = None,
        target_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One update of all networks; no value is read back to the host.

        Args:
            step: number of updates made before this one.
            source: uint8 [B, 3, H, W], RGB, on the networks' device.
            source_labels: uint8 [B, H, W], train ids, 255 = don't care.
            target: uint8 [B, 3, H', W']; None where no target is used.
            target_labels: uint8 [B, H', W'], the pseudo labels of stage 2; None in stage 1.

        Returns:
            The unweighted losses by name, detached float32 scalars on the device.

        Raises:
            CannotCapture: a CUDA graph was asked for, and the step does not fit into one, or the batch has other shapes
                than the first one. With step_mode "auto" such a step is an eager one.
        """
        for rate, base in self._rates:
            rate.fill_(poly(base, step, self.config))
        order = None
        if self.teacher is not None:
            self.teacher.set_step(step)
            order = self._draw_order(step, len(source))
        inputs = (source, source_labels, target, target_labels, order)
        if self._captured is not None:
            try:
                return self._captured(*inputs)
            except CannotCapture as reason:
                if self.config.step_mode != "auto":
                    raise
                log.warning("%s; from here on every step is eager", reason)
                self.mode, self._captured = "eager", None
        return self._update(*inputs)

    @property
    def weights(self) -> dict[str, float]:
        """The lambda of each loss of `source_terms` and `target_terms` (Eq. 12, Eq. 13)."""
        config = self.config
        lambda_ci = config.lambda_ci if config.stage == 1 else config.lambda_ci_stage2
        return {
            "seg": config.lambda_seg,
            "seg_target": config.lambda_seg,
            "adv": config.lambda_adv,
            "stuff": lambda_ci,
            "instance": lambda_ci,
        }

    def source_terms(self, source: Tensor, labels: Tensor) -> "Terms":
        """Eq. 1 on source images, and what matching would remember of them (Eq. 4); nothing is changed.

        Args:
            source: uint8 [B, 3, H, W], transferred if they are to be.
            labels: uint8 [B, H, W].
        """
        features, logits = self._segment(source, "source")
        loss, maps = upsampled_segmentation_loss(logits, labels, map_dtype=self._map_dtype)
        losses = {"seg": distributed.mean_over_all(loss, labels)}
        regions = None if self.matching is None else correct_labels(logits, labels)
        return Terms(losses, features, logits, regions, maps)

    def target_terms(self, target: Tensor, pseudo_labels: Tensor | None) -> "Terms":
        """The losses on target images that the segmentation network minimises (Eq. 2, 6, 8, 10, 11).

        Args:
            target: uint8 [B, 3, H, W].
            pseudo_labels: uint8 [B, H, W] in stage 2; None in stage 1.
        """
        config, losses, labels, maps = self.config, {}, None, None
        features, logits = self._segment(target, "target")
        if self.matching is not None:
            labels = predicted_labels(logits, pseudo_labels if config.match_pseudo_labels else None)
            regions = self._aside.run(self.matching.find, labels)
        if config.stage == 2:
            loss, _ = upsampled_segmentation_loss(logits, pseudo_labels)
            losses["seg_target"] = distributed.mean_over_all(loss, pseudo_labels)
        if self.discriminator is not None:
            maps = upsampled_softmax(logits, target.shape[2:], self._map_dtype)
            losses["adv"] = adversarial_loss(self._judge(maps, last=False), "source", config.adversary)
        if self.matching is not None:
            self._aside.join()
            losses["stuff"], losses["instance"] = self.matching(features, regions, self.model.classify)
        return Terms(losses, features, logits, labels, maps)

    # ------------------------------------------------------------------------------------------------------------------
    # What a step does
    # ------------------------------------------------------------------------------------------------------------------

    def _new_graph(self) -> Captured | None:
        return Captured(self._update, self._unchanged) if "graph" in self.mode else None

    def _draw_order(self, step: int, images: int) -> Tensor:
        """Which classes are pasted in this process's images, drawn on the host: a graph has no random numbers."""
        ranks, rank = distributed.size(), distributed.rank()
        order = draw_order(self.config.seed, step, ranks * images, self.model.num_classes).chunk(ranks)[rank]
        if self.device.type != "cuda":
            return order
        return order.contiguous().pin_memory().to(self.device, non_blocking=True)

    def _update(self, *inputs: Tensor | None) -> dict[str, Tensor]:
        """The step at the learning rates that are set. The same work at every call: it can be captured."""
        try:
            return self._change(*inputs)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # of a device or a capture that is broken: the first error counts
                self._aside.join()
            raise

    def _change(
        self,
        source: Tensor,
        source_labels: Tensor,
        target: Tensor | None,
        target_labels: Tensor | None,
        order: Tensor | None,
    ) -> dict[str, Tensor]:
        """All that a step does, at the learning rates that are set."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)  # the generator's losses leave it alone
        # Source and target are back-propagated apart: the first graph is gone before the second one is built.
        if target is not None:
            source = transfer(self.config.transfer, source, target, self.config.fda_beta)
        losses, source_maps = self._source_losses(source, source_labels)
        if self.teacher is not None:
            losses["mix"] = self._mixed_loss(source, source_labels, target, order)
        if self.config.uses_target:
            target_losses, target_maps = self._target_losses(target, target_labels)
            losses |= target_losses
        if self.discriminator is not None:
            losses["d"] = self._discriminator_loss(source_maps, target_maps)
        self._optimize()
        return {name: loss.detach() for name, loss in losses.items()}

    def _source_losses(self, source: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """`source_terms` with their gradients, and what is remembered of the images; the maps that D judges."""
        terms = self.source_terms(source, labels)
        regions = None if self.matching is None else self._aside.run(self.matching.find, terms.labels)
        self._backward(self._weighted(terms.losses))
        if self.matching is not None:
            self._aside.join()
            self.matching.remember(terms.features.detach(), regions, self.model.classify)
        return terms.losses, terms.maps

    def _mixed_loss(self, source: Tensor, labels: Tensor, target: Tensor, order: Tensor) -> Tensor:
        """Cross entropy on source regions pasted on target images that the teacher labels, with its gradients."""
        with torch.no_grad(), self._autocast():
            _, logits = self._teach(self._normalised(target), "target")
        pseudo_labels, weight = label_confidently(upsampled_softmax(logits, target.shape[2:]), self.config.confidence)
        images, labels, weights = mix(source, labels, target, pseudo_labels, weight, order)
        _, logits = self._segment(images, "source")  # as source: no statistic of mixed images is the target's
        loss, _ = upsampled_segmentation_loss(logits, labels, weights=weights)
        self._backward(self.config.lambda_mix * loss)
        return loss

    def _target_losses(self, target: Tensor, pseudo_labels: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """`target_terms` with their gradients; the maps that D judges."""
        terms = self.target_terms(target, pseudo_labels)
        self._backward(self._weighted(terms.losses))
        return terms.losses, terms.maps

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Their part of Eq. 12 and Eq. 13."""
        return sum(self.weights[name] * loss for name, loss in losses.items())

    def _discriminator_loss(self, source_maps: Tensor, target_maps: Tensor) -> Tensor:
        """Eq. 3 on the maps of this step, with its gradients."""
        self.discriminator.requires_grad_(True)
        self.optimizer_d.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=source_maps.device)
        for maps, domain in ((source_maps, "source"), (target_maps, "target")):
            judgement = self._judge(maps.detach(), last=domain == "target")
            term = adversarial_loss(judgement, domain, self.config.adversary)
            self._backward(self.config.lambda_d * term)
            loss = loss + term.detach()
        return loss

    def _optimize(self) -> None:
        for optimizer in self._optimizers():
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)  # skipped on the device where a gradient is not finite
        if self.scaler is not None:
            self.scaler.update()
        if self.teacher is not None:
            self.teacher.follow()

    def _normalised(self, images: Tensor) -> Tensor:
        images = normalise(images, self.convention)
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images

    def _segment(self, images: Tensor, domain: str) -> tuple[Tensor, Tensor]:
        images = self._normalised(images)
        called, last = self._called[self.model], domain == "target" or not self.config.uses_target
        with self._autocast(), distributed.backward_follows(called, last):
            return called(images, domain)

    def _judge(self, maps: Tensor, last: bool) -> Tensor:
        called = self._called[self.discriminator]
        with self._autocast(), distributed.backward_follows(called, last):
            return called(maps)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    # ------------------------------------------------------------------------------------------------------------------
    # What a step changes
    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _map_dtype(self) -> torch.dtype | None:
        """Of the maps that D judges: what its first convolution would round them to."""
        return None if self.discriminator is None else DTYPES[self.precision]

    def _parts(self) -> dict[str, Any]:
        names = ("model", "discriminator", "matching", "optimizer", "optimizer_d", "scaler")
        parts = {name: part for name in names if (part := getattr(self, name)) is not None}
        return parts if self.teacher is None else parts | {"teacher": self.teacher.network}

    def _networks(self) -> list[nn.Module]:
        return [network for network in (self.model, self.discriminator) if network is not None]

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer for optimizer in (self.optimizer, self.optimizer_d) if optimizer is not None]

    def _settle_optimizers(self) -> None:
        rates = iter(self._rates)
        for optimizer in self._optimizers():
            settle(optimizer, [next(rates)[0] for _ in optimizer.param_groups])

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Puts back at its end whatever a step changes."""
        modules = [part for part in self._parts().values() if isinstance(part, nn.Module)]
        tensors = [x for module in modules for x in (*module.parameters(), *module.buffers())]
        tensors += [x for optimizer in self._optimizers() for state in optimizer.state.values() for x in state.values()]
        values = [x.detach().to("cpu", copy=True) for x in tensors]
        scale = self.scaler and self.scaler.state_dict()
        try:
            yield
        finally:
            with torch.no_grad():
                for x, value in zip(tensors, values, strict=True):
                    x.copy_(value)
            if self.scaler:
                # Forgets which optimisers it has stepped since its last update, too: a second step would be an error.
                self.scaler.update(scale["scale"])
                self.scaler.load_state_dict(scale)
                for optimizer in self._optimizers():  # what it leaves there where an update ends in an error
                    for name in ("grad_scale", "found_inf"):
                        vars(optimizer).pop(name, None)
