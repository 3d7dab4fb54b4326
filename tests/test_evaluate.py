"""IoU against torchmetrics and cityscapesscripts, and what an evaluation reports."""

import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import trainId2label
from PIL import Image
from torch import nn
from torchmetrics.functional.classification import multiclass_jaccard_index

from simfast.evaluate import Scores, count_confusion, evaluate
from simfast.models.weights import normalise

NUM_CLASSES, IGNORE = 19, 255


def random_maps(seed, ignored=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, (3, 24, 40)).astype(np.uint8)
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, NUM_CLASSES, labels.shape))
    labels[rng.random(labels.shape) < ignored] = IGNORE
    return torch.from_numpy(predicted), torch.from_numpy(labels)


def test_iou_equals_torchmetrics():
    predicted, labels = random_maps(0)
    scores = Scores.of(count_confusion(predicted, labels, NUM_CLASSES), range(NUM_CLASSES))
    expected = multiclass_jaccard_index(predicted, labels.long(), NUM_CLASSES, average="none", ignore_index=IGNORE)
    # torchmetrics divides in float32
    np.testing.assert_allclose(list(scores.iou.values()), expected.numpy(), rtol=1e-6)


def test_iou_equals_cityscapesscripts(tmp_path, monkeypatch):
    predicted, labels = random_maps(1)
    to_id = np.zeros(256, np.uint8)  # everything unlabelled is id 0
    for train_id in range(NUM_CLASSES):
        to_id[train_id] = trainId2label[train_id].id
    files = {"pred": [], "gtFine_labelIds": []}
    for kind, maps in (("pred", predicted), ("gtFine_labelIds", labels)):
        for i, one in enumerate(maps):
            path = tmp_path / f"town_{i:06d}_000000_{kind}.png"
            Image.fromarray(to_id[one.numpy()]).save(path)
            files[kind].append(str(path))
    args = cityscapes.args
    for name, value in (("evalInstLevelScore", False), ("quiet", True), ("JSONOutput", False)):
        monkeypatch.setattr(args, name, value)
    theirs = cityscapes.evaluateImgLists(files["pred"], files["gtFine_labelIds"], args)
    ours = Scores.of(count_confusion(predicted, labels, NUM_CLASSES), range(NUM_CLASSES))
    for train_id, iou in ours.iou.items():
        assert iou == theirs["classScores"][trainId2label[train_id].name]
    assert ours.miou == pytest.approx(theirs["averageScoreClasses"], rel=1e-15)


def test_the_mean_is_over_the_classes_asked_for_and_found():
    labels, predicted = torch.tensor([0, 0, 1, 2, IGNORE]), torch.tensor([0, 1, 1, 0, 2])
    confusion = count_confusion(predicted, labels, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = Scores.of(confusion, [0, 1, 3])
    assert scores.iou[0] == pytest.approx(1 / 3)
    assert scores.iou[1] == pytest.approx(1 / 2)
    assert math.isnan(scores.iou[3])
    assert scores.miou == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert scores.pixel_accuracy == pytest.approx(2 / 4)


class Threshold(nn.Module):
    """Class 1 where the picture is bright, at half its resolution."""

    def forward(self, images):
        bright = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)
        return images, torch.cat([-bright, bright], 1)


def test_evaluation_scores_at_the_labels_own_size():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, 4:] = 255
    label = torch.zeros(17, 33, dtype=torch.uint8)
    label[:, 17:] = 1
    label[0] = IGNORE
    model = Threshold().train()
    loader = [(image[None], [label], ["one"])] * 2
    scores, pictures = evaluate(model, loader, [0, 1], "rgb", torch.device("cpu"), keep=1)
    logits = model(normalise(image[None], "rgb"))[1]
    expected = nn.functional.interpolate(logits, label.shape, mode="bilinear", align_corners=True).argmax(1)[0]
    assert scores.pixel_accuracy == float((expected == label)[1:].double().mean())
    assert len(pictures) == 1
    assert torch.equal(pictures[0][1].long(), expected)
    assert model.training
