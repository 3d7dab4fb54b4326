"""A training step as a plain loop writes it, in the manner of the released code: what simfast.training.step replaces.

float32, no autocast, contiguous images; logits upsampled as a whole, softmax where it is needed; matching mask by mask
(bench/plain_matching.py); optimisers in their default form; every loss read back for the progress bar.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain_matching import PlainMatching
from simfast.config import Config
from simfast.models import normalise
from simfast.training.optimizers import poly


class PlainStep:
    """Same updates as Trainer with gate="released", fill_rule="full", in stage 1.

    Args:
        config: the run's settings.
        model, discriminator: on their device.
        matching: with the memory to begin with.
    """

    def __init__(self, config: Config, model: nn.Module, discriminator: nn.Module, matching: PlainMatching):
        self.config, self.model, self.discriminator, self.matching = config, model, discriminator, matching
        self.groups = model.parameter_groups(config.lr, config.head_lr_factor)
        self.bases = [group["lr"] for group in self.groups]
        momentum = {"momentum": config.momentum, "nesterov": config.nesterov}
        self.optimizer = torch.optim.SGD(self.groups, weight_decay=config.weight_decay, **momentum)
        self.optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=config.lr_d, betas=config.betas)

    def step(self, step: int, source: Tensor, source_labels: Tensor, target: Tensor) -> dict[str, float]:
        config, losses = self.config, {}
        self.model.train()
        for group, base in zip(self.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = poly(base, step, config)
        self.optimizer_d.param_groups[0]["lr"] = poly(config.lr_d, step, config)
        self.optimizer.zero_grad()
        self.optimizer_d.zero_grad()
        self.discriminator.requires_grad_(False)

        features, logits = self.model(normalise(source, "rgb"))
        source_map = upsample(logits, source.shape[2:])
        loss = F.cross_entropy(source_map, source_labels.long(), ignore_index=255)
        (config.lambda_seg * loss).backward()
        losses["seg"] = loss.item()
        small = F.interpolate(source_labels[:, None].float(), logits.shape[2:], mode="nearest")[:, 0].long()
        predicted = logits.argmax(1)
        self.matching.remember(features.detach(), torch.where(predicted == small, predicted, 255))

        features, logits = self.model(normalise(target, "rgb"))
        target_map = upsample(logits, target.shape[2:])
        judgement = self.discriminator(target_map.softmax(1))
        adversarial = F.binary_cross_entropy_with_logits(judgement, torch.zeros_like(judgement))
        stuff, instance = self.matching(features, logits.argmax(1))
        (config.lambda_adv * adversarial + config.lambda_ci * (stuff + instance)).backward()
        losses |= {"adv": adversarial.item(), "stuff": stuff.item(), "instance": instance.item(), "d": 0.0}

        self.discriminator.requires_grad_(True)
        for one, label in ((source_map, 0.0), (target_map, 1.0)):
            judgement = self.discriminator(one.detach().softmax(1))
            loss = F.binary_cross_entropy_with_logits(judgement, torch.full_like(judgement, label))
            (config.lambda_d * loss).backward()
            losses["d"] += loss.item()
        self.optimizer.step()
        self.optimizer_d.step()
        return losses


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)
