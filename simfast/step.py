"""One training step: both networks, matching, both optimisers (Eq. 12)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simfast.config import Config
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
        model: the segmentation network, images -> (features, logits).
        discriminator: of softmax maps; None for methods without adversarial adaptation.
        matching: None for methods without it.
        convention: the input that model expects.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        discriminator: nn.Module | None,
        matching: StuffInstanceMatching | None,
        convention: str,
    ):
        self.config, self.model, self.convention = config, model, convention
        self.discriminator, self.matching = discriminator, matching
        self.optimizer = torch.optim.SGD(
            model.parameter_groups(config.lr),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        self.optimizer_d = None
        if discriminator is not None:
            self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=config.lr_d, betas=config.betas)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def modules(self) -> dict[str, nn.Module]:
        """Every part that a checkpoint holds, by its key there."""
        parts = {"model": self.model, "discriminator": self.discriminator, "matching": self.matching}
        return {name: part for name, part in parts.items() if part is not None}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser that a checkpoint holds, by its key there."""
        return {"optimizer": self.optimizer} | ({"optimizer_d": self.optimizer_d} if self.optimizer_d else {})

    def step(self, step: int, source: Tensor, source_labels: Tensor, target: Tensor | None) -> dict[str, Tensor]:
        """One update of all networks; no value is read back to the host.

        Args:
            step: number of updates made before this one.
            source: uint8 [B, 3, H, W], RGB, on the networks' device.
            source_labels: uint8 [B, H, W], train ids, 255 = don't care.
            target: uint8 [B, 3, H', W']; None where no target is used.

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
        features, logits = self.model(normalise(source, self.convention))
        source_logits = upsample(logits, source_labels.shape[1:])
        losses["seg"] = segmentation_loss(source_logits, source_labels)
        (config.lambda_seg * losses["seg"]).backward()
        if self.matching is not None:
            self.matching.remember(features.detach(), correct_labels(logits, source_labels), self.model.classify)

        if self.discriminator is not None:
            features, logits = self.model(normalise(target, self.convention))
            target_logits = upsample(logits, target.shape[2:])
            losses["adv"] = adversarial_loss(self.discriminator(F.softmax(target_logits.float(), 1)), "source")
            total = config.lambda_adv * losses["adv"]
            if self.matching is not None:
                losses["stuff"], losses["instance"] = self.matching(
                    features, predicted_labels(logits), self.model.classify
                )
                total = total + config.lambda_ci * (losses["stuff"] + losses["instance"])
            total.backward()
            losses["d"] = self._update_discriminator(step, source_logits.detach(), target_logits.detach())

        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _update_discriminator(self, step: int, source_logits: Tensor, target_logits: Tensor) -> Tensor:
        """Eq. 3 on the maps of this step, and the update that follows from it."""
        self.discriminator.requires_grad_(True)
        self.optimizer_d.param_groups[0]["lr"] = poly(self.config.lr_d, step, self.config)
        self.optimizer_d.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=source_logits.device)
        for logits, domain in ((source_logits, "source"), (target_logits, "target")):
            term = adversarial_loss(self.discriminator(F.softmax(logits.float(), 1)), domain)
            (self.config.lambda_d * term).backward()
            loss = loss + term.detach()
        self.optimizer_d.step()
        return loss
