"""One training step: both networks, matching, both optimisers (Eq. 12, Eq. 13)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simfast.config import Config
from simfast.data.transfer import transfer
from simfast.losses import adversarial_loss, segmentation_loss, upsample
from simfast.matching import StuffInstanceMatching, correct_labels, predicted_labels
from simfast.models.weights import normalise


def poly(base: float, step: int, config: Config) -> float:
    """Learning rate at a step of the poly schedule (section 5.2)."""
    return base * (1 - step / config.schedule_steps) ** config.power


class Trainer:
    """The networks of a run with their optimisers, and what one step does to them.

    Args:
        config: the run's settings.
        model: the segmentation network, images, domain -> (features, logits).
        discriminator: of softmax maps; None for methods without adversarial adaptation.
        matching: None for methods without it.
        convention: the input that model expects.
        device: where they all go.
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
        for part in (model, discriminator, matching):
            if part is not None:
                part.to(device)
        self.config, self.model, self.convention = config, model, convention
        self.discriminator, self.matching = discriminator, matching
        self.optimizer = torch.optim.SGD(
            model.parameter_groups(config.lr, config.head_lr_factor),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        self.optimizer_d = None
        if discriminator is not None:
            self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=config.lr_d, betas=config.betas)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the networks, the banks and the optimisers."""
        return {name: part.state_dict() for name, part in self._parts().items()} | {"convention": self.convention}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; other keys of state are left alone."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.convention = state["convention"]

    def _parts(self) -> dict[str, Any]:
        names = ("model", "discriminator", "matching", "optimizer", "optimizer_d")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

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
        """
        config, losses = self.config, {}
        self.model.train()
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = poly(base, step, config)
        self.optimizer.zero_grad(set_to_none=True)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)  # the generator's losses leave it alone

        # Source and target are back-propagated apart: the first graph is gone before the second one is built.
        if target is not None:
            source = transfer(config.transfer, source, target, config.fda_beta)
        features, logits = self.model(normalise(source, self.convention), "source")
        source_logits = upsample(logits, source_labels.shape[1:])
        losses["seg"] = segmentation_loss(source_logits, source_labels)
        (config.lambda_seg * losses["seg"]).backward()
        if self.matching is not None:
            self.matching.remember(features.detach(), correct_labels(logits, source_labels), self.model.classify)

        if config.uses_target:
            features, logits = self.model(normalise(target, self.convention), "target")
            target_logits = upsample(logits, target.shape[2:])
            losses |= self._target_losses(features, logits, target_logits, target_labels)
            self._weighted(losses).backward()
        if self.discriminator is not None:
            losses["d"] = self._update_discriminator(step, source_logits.detach(), target_logits.detach())

        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _target_losses(
        self, features: Tensor, logits: Tensor, upsampled: Tensor, pseudo_labels: Tensor | None
    ) -> dict[str, Tensor]:
        """The losses on target images that the segmentation network minimises (Eq. 2, 6, 8, 10, 11)."""
        config, losses = self.config, {}
        if config.stage == 2:
            losses["seg_target"] = segmentation_loss(upsampled, pseudo_labels)
        if self.discriminator is not None:
            judgement = self.discriminator(F.softmax(upsampled.float(), 1))
            losses["adv"] = adversarial_loss(judgement, "source", config.adversary)
        if self.matching is not None:
            labels = predicted_labels(logits, pseudo_labels if config.match_pseudo_labels else None)
            losses["stuff"], losses["instance"] = self.matching(features, labels, self.model.classify)
        return losses

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Their part of Eq. 12 and Eq. 13."""
        config = self.config
        lambda_ci = config.lambda_ci if config.stage == 1 else config.lambda_ci_stage2
        weights = {
            "seg_target": config.lambda_seg,
            "adv": config.lambda_adv,
            "stuff": lambda_ci,
            "instance": lambda_ci,
        }
        return sum(weight * losses[name] for name, weight in weights.items() if name in losses)

    def _update_discriminator(self, step: int, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """Eq. 3 on the maps of this step, and the update that follows from it."""
        self.discriminator.requires_grad_(True)
        self.optimizer_d.param_groups[0]["lr"] = poly(self.config.lr_d, step, self.config)
        self.optimizer_d.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=source_logits.device)
        for logits, domain in ((source_logits, "source"), (target_logits, "target")):
            judgement = self.discriminator(F.softmax(logits.float(), 1))
            term = adversarial_loss(judgement, domain, self.config.adversary)
            (self.config.lambda_d * term).backward()
            loss = loss + term.detach()
        self.optimizer_d.step()
        return loss
