"""One training step: both networks, matching, both optimisers (Eq. 12, Eq. 13); eager, compiled or as a CUDA graph."""

import contextlib
import functools
import logging
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simfast.config import Config
from simfast.data.transfer import transfer
from simfast.matching import StuffInstanceMatching, correct_labels, predicted_labels
from simfast.models.upsampled import upsampled_segmentation_loss, upsampled_softmax
from simfast.runtime import distributed
from simfast.training.aside import Aside
from simfast.training.capture import CannotCapture, Captured
from simfast.training.losses import adversarial_loss
from simfast.training.modes import resolve_mode, resolve_precision
from simfast.training.networks import Networks
from simfast.training.optimizers import Optimizers
from simfast.training.self_training import draw_order, label_confidently, mix
from simfast.training.undo import Undo

log = logging.getLogger("simfast")


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
    """[B, K, H, W], the softmax maps that D judges; None without it. With channels of zeros beyond where fused."""


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
        teacher, scaler: of `networks` and `optimizers`; None where the settings need none.
        whole: whether the state is that after a whole step, also where the step after it ended in an error; False where
            that was in the optimisers, between one parameter and the next.

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
        self.config, self.device = config, device
        self.model, self.discriminator, self.matching = model, discriminator, matching
        self._fused_maps = "maps" in config.fused
        self.networks = Networks(config, model, discriminator, convention, self.mode, self.precision, device)
        self.optimizers = Optimizers(config, model, discriminator, self.precision, device)
        self.teacher, self.scaler = self.networks.teacher, self.optimizers.scaler
        if matching is not None:
            matching.to(device)
        self._aside = Aside(device)
        self._captured = self._new_graph()
        self.whole = True
        self._undo = Undo(module for module in (model, matching) if module is not None)

    @property
    def convention(self) -> str:
        """The input that the segmentation network expects."""
        return self.networks.convention

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the networks, the banks and the optimisers."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"convention": self.convention}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; other keys of state are left alone."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.networks.convention = state["convention"]
        self.optimizers.settle()
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
            Whatever else went wrong. Then the state is that from before the step, unless `whole` says otherwise.
        """
        self.optimizers.set_rates(step)
        order = None
        if self.teacher is not None:
            self.teacher.set_step(step)
            order = self._draw_order(step, len(source))
        inputs = (source, source_labels, target, target_labels, order)
        if self._captured is not None:
            try:
                return self._captured(*inputs)
            except CannotCapture as reason:
                self.whole = True  # all that the attempt changed has been put back
                if self.config.step_mode != "auto":
                    raise
                log.warning("%s; from here on every step is eager", reason)
                self.mode, self._captured = "eager", None
        # Its optimisers are the last in a step; before them, it changes buffers alone.
        with self._undo:
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
        features, logits = self.networks.segment(source, "source")
        loss, maps = upsampled_segmentation_loss(
            logits, labels, map_dtype=self.networks.map_dtype, fused=self._fused_maps
        )
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
        features, logits = self.networks.segment(target, "target")
        if self.matching is not None:
            labels = predicted_labels(logits, pseudo_labels if config.match_pseudo_labels else None)
            regions = self._aside.run(self.matching.find, labels)
        if config.stage == 2:
            loss, _ = upsampled_segmentation_loss(logits, pseudo_labels, fused=self._fused_maps)
            losses["seg_target"] = distributed.mean_over_all(loss, pseudo_labels)
        if self.discriminator is not None:
            maps = upsampled_softmax(logits, target.shape[2:], self.networks.map_dtype, self._fused_maps)
            losses["adv"] = adversarial_loss(self.networks.judge(maps, last=False), "source", config.adversary)
        if self.matching is not None:
            self._aside.join()
            losses["stuff"], losses["instance"] = self.matching(features, regions, self.model.classify)
        return Terms(losses, features, logits, labels, maps)

    # ------------------------------------------------------------------------------------------------------------------
    # What a step does
    # ------------------------------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        """All that a step changes, by its key in a checkpoint."""
        modules = {"model": self.model, "discriminator": self.discriminator, "matching": self.matching}
        parts = {name: module for name, module in modules.items() if module is not None} | self.optimizers.parts()
        return parts if self.teacher is None else parts | {"teacher": self.teacher.network}

    def _new_graph(self) -> Captured | None:
        return Captured(self._update, self._unchanged) if "graph" in self.mode else None

    def _unchanged(self) -> contextlib.AbstractContextManager:
        """Puts back at its end whatever a step changes."""
        return self.optimizers.unchanged(part for part in self._parts().values() if isinstance(part, nn.Module))

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
            with self.networks.fresh_weights():
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
        self.optimizers.segmentation.zero_grad(set_to_none=True)
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
        self.whole = False
        self.optimizers.step()
        if self.teacher is not None:
            self.teacher.follow()
        self.whole = True
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
        logits = self.networks.teach(target)
        maps = upsampled_softmax(logits, target.shape[2:], fused=self._fused_maps)
        pseudo_labels, weight = label_confidently(maps, self.config.confidence)  # channels of zeros are no class's
        images, labels, weights = mix(source, labels, target, pseudo_labels, weight, order)
        _, logits = self.networks.segment(images, "source")  # as source: no statistic of mixed images is the target's
        loss, _ = upsampled_segmentation_loss(logits, labels, weights=weights, fused=self._fused_maps)
        self._backward(self.config.lambda_mix * loss)
        return loss

    def _target_losses(self, target: Tensor, pseudo_labels: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
        """`target_terms` with their gradients; the maps that D judges."""
        terms = self.target_terms(target, pseudo_labels)
        self._backward(self._weighted(terms.losses))
        return terms.losses, terms.maps

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the step."""
        self.optimizers.backward(loss)
        self.networks.gather_gradients()

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Their part of Eq. 12 and Eq. 13."""
        return functools.reduce(operator.add, (self.weights[name] * loss for name, loss in losses.items()))

    def _discriminator_loss(self, source_maps: Tensor, target_maps: Tensor) -> Tensor:
        """Eq. 3 on the maps of this step, with its gradients."""
        self.discriminator.requires_grad_(True)
        self.optimizers.discriminator.zero_grad(set_to_none=True)
        terms = []
        for maps, domain in ((source_maps, "source"), (target_maps, "target")):
            judgement = self.networks.judge(maps.detach(), last=domain == "target")
            terms.append(adversarial_loss(judgement, domain, self.config.adversary))
            self._backward(self.config.lambda_d * terms[-1])
        return terms[0].detach() + terms[1].detach()
