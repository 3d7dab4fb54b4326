"""A plain PyTorch loop for semantic segmentation, with stuff and instance matching added: lines that end in "# +".

    python examples/plain_loop.py

Random images stand for a labelled source and an unlabelled target, so that it runs anywhere, in seconds. The loop still
runs with the marked lines taken out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simfast.matching import StuffInstanceMatching, correct_labels, predicted_labels  # +

NAMES = ["road", "sky", "person", "car"]


class Network(nn.Module):
    """Any network will do that returns its feature map beside the logits."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()
        )
        self.head = nn.Conv2d(64, len(NAMES), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features, self.head(features)


def images_and_labels(brightness: float) -> tuple[Tensor, Tensor]:
    """Blobs of classes, each with a colour: float32 [B, 3, H, W] and int64 [B, H, W]."""
    labels = F.interpolate(torch.randn(2, len(NAMES), 6, 8), size=(96, 128), mode="bicubic").argmax(1)
    colours = torch.tensor([[0.4, 0.2, 0.4], [0.3, 0.5, 0.7], [0.9, 0.1, 0.2], [0.0, 0.0, 0.6]])
    images = colours[labels].permute(0, 3, 1, 2) * brightness
    return images + 0.1 * torch.randn_like(images), labels


def main(steps: int = 40) -> None:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    matching = StuffInstanceMatching(num_features=64, stuff=[0, 1], things=[2, 3])  # +

    for step in range(steps):
        images, labels = images_and_labels(brightness=1.0)
        features, logits = network(images)
        upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=True)
        loss = F.cross_entropy(upsampled, labels, ignore_index=255)
        report = {"segmentation": loss.item()}

        target_images, _ = images_and_labels(brightness=0.6)  # +
        target_features, target_logits = network(target_images)  # +
        matching.remember(features, correct_labels(logits, labels))  # +
        stuff, instance = matching(target_features, predicted_labels(target_logits))  # +
        loss = loss + 0.1 * (stuff + instance)  # +
        report |= {"stuff": stuff.item(), "instance": instance.item()}  # +

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}:", ", ".join(f"{name} {value:.3f}" for name, value in report.items()))


if __name__ == "__main__":
    main()
