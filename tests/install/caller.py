"""A user's program in strict types, which mypy reads and nobody runs: what the public functions take and give back."""

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor

import simfast
from simfast import ops, reference
from simfast.inference.evaluate import Scores, evaluate
from simfast.matching import Regions, StuffInstanceMatching, correct_labels, predicted_labels
from simfast.models import DeepLabV2, Restored, WeightsReport, deeplab_v2, load_weights, normalise, restore_model


def every_op(features: Tensor, labels: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    assert_type(ops.connected_components(labels, connectivity=4), tuple[Tensor, Tensor])
    _ids, counts = reference.connected_components(labels, background=0)
    segments, areas = ops.find_regions(labels, [0, 1], [11], max_instances=3)
    means = ops.segment_mean(features, segments, areas.shape[1])
    rings = ops.select_rings(areas, torch.arange(areas.shape[1]))
    distances, rows = ops.nearest_l1(means.flatten(0, 1), rings.flatten(), bank, counts)
    return reference.matching_losses(distances.view(rings.shape), rows.view(rings.shape), rings, 2, 3, 8)


def own_trainer(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    matching = StuffInstanceMatching(2048, stuff=[0, 1], things=[11], gate="released", ops="auto")
    regions: Regions = matching.find(predicted_labels(logits))
    matching.remember(features, correct_labels(logits, labels), classify=lambda vectors: vectors @ vectors.T)
    stuff, instance = matching(features, regions)
    loss: Tensor = stuff + instance
    return loss


def trained_network(checkpoint: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    network: DeepLabV2 = deeplab_v2("resnet101", 19, head_dilations=[6, 12])
    report: WeightsReport = load_weights(network, "resnet101.pth", convention="bgr")
    print(report.matched, report.total, network.parameter_groups(2.5e-4), simfast.__version__)
    restored: Restored = restore_model(checkpoint, device="cuda" if ops.available("cuda") else "cpu")
    features, logits = restored.model(normalise(images, restored.convention))
    return features, logits


def score(network: DeepLabV2, batches: list[tuple[Tensor, list[Tensor], list[str]]]) -> float:
    scores, panels = evaluate(network, batches, range(19), "rgb", torch.device("cpu"), keep=2)
    assert_type((scores, panels), tuple[Scores, list[tuple[Tensor, Tensor, Tensor]]])
    return scores.miou
