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

from simfast.config.classes import CITYSCAPES
from simfast.inference.evaluate import Scores, count_confusion, evaluate, full_size_labels
from simfast.models.inputs import normalise
from simfast.testing import needs_gpu

NUM_CLASSES, IGNORE, SETS = 19, 255, CITYSCAPES.sets


def random_maps(seed, ignored=0.1, shape=(3, 24, 40), num_classes=NUM_CLASSES):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.6, labels, rng.integers(0, num_classes, shape))
    labels[rng.random(shape) < ignored] = IGNORE
    return torch.from_numpy(predicted), torch.from_numpy(labels)


def test_iou_equals_torchmetrics():
    predicted, labels = random_maps(0)
    scores = Scores.of(count_confusion(predicted, labels, NUM_CLASSES), range(NUM_CLASSES))
    expected = multiclass_jaccard_index(predicted, labels.long(), NUM_CLASSES, average="none", ignore_index=IGNORE)
    # torchmetrics divides in float32
    np.testing.assert_allclose(list(scores.iou.values()), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "num_classes"), [((3, 24, 40), NUM_CLASSES), ((2, 5, 7), 16), ((1, 1024, 2048), NUM_CLASSES)]
)
def test_scores_equal_cityscapesscripts_to_the_last_digit(shape, num_classes, tmp_path, monkeypatch):
    predicted, labels = random_maps(1, shape=shape, num_classes=num_classes)
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
    ours = Scores.of(count_confusion(predicted, labels, NUM_CLASSES), range(NUM_CLASSES), sets=SETS)
    expected = {c: theirs["classScores"][trainId2label[c].name] for c in range(NUM_CLASSES)}
    occurring = set(labels.unique().tolist()) - {IGNORE}
    assert {c: iou for c, iou in ours.iou.items() if not math.isnan(iou)} == {c: expected[c] for c in occurring}
    # The one difference: a class that is predicted and never labelled counts as 0 there, and not at all here.
    assert {expected[c] for c in occurring ^ set(predicted.unique().tolist())} <= {0}
    assert ours.miou == ours.means["19"]
    if len(occurring) == num_classes:
        assert ours.miou == theirs["averageScoreClasses"]
    else:
        assert ours.miou == pytest.approx(theirs["averageScoreClasses"] * (len(occurring) + 1) / len(occurring))


def test_class_sets_are_those_of_the_method():
    names = (
        "road, sidewalk, building, traffic light, traffic sign, vegetation, sky, person, rider, car, bus, motorcycle"
    )
    names = [*names.split(", "), "bicycle"]
    assert [CITYSCAPES.names[c] for c in SETS["13"]] == names
    assert {CITYSCAPES.names[c] for c in SETS["16"]} == {*names, "wall", "fence", "pole"}
    assert SETS["19"] == tuple(range(19))
    assert all(len(ids) == int(n) and list(ids) == sorted(ids) for n, ids in SETS.items())


def test_means_over_19_16_and_13_classes_by_hand():
    # Every class c has 10 pixels, of which c // 2 are predicted as road and the rest right; train has neither.
    confusion = torch.zeros(19, 19, dtype=torch.int64)
    for c in range(19):
        confusion[c, c] += 10 - c // 2
        confusion[c, 0] += c // 2
    confusion[16] = 0
    by_hand = {0: 10 / 83} | {
        c: (10 - c // 2) / 10 for c in range(1, 19) if c != 16
    }  # 81 wrong as road, less train's 8
    scores = Scores.of(confusion, SETS["16"], range(19), SETS)
    assert {c: iou for c, iou in scores.iou.items() if not math.isnan(iou)} == pytest.approx(by_hand)
    assert list(scores.iou) == list(range(19))
    # Halves of 1..18 sum to 81: 18 - 8.1 in all, less terrain 0.6, truck 0.3; then less wall 0.9, fence 0.8, pole 0.8.
    assert scores.means["19"] == pytest.approx((10 / 83 + 17 - 7.3) / 18)
    assert scores.means["16"] == pytest.approx((10 / 83 + 9.7 - 0.9) / 16)
    assert scores.means["13"] == pytest.approx((10 / 83 + 8.8 - 2.5) / 13)
    assert scores.miou == scores.means["16"]
    assert scores.class_ids == SETS["16"]


def test_a_mean_is_given_only_where_the_labels_have_its_classes():
    confusion = torch.eye(19, dtype=torch.int64)
    assert set(Scores.of(confusion, SETS["16"], SETS["16"], SETS).means) == {"16", "13"}
    assert Scores.of(confusion, [0, 1], [0, 1, 2], SETS).means == {}
    assert Scores.of(confusion, [0, 1], range(19)).means == {}
    assert set(Scores.of(confusion, [0, 1], range(19), SETS).means) == {"19", "16", "13"}
    assert Scores.of(confusion, [0], [0, 1], {"ground": [0, 1]}).means == {"ground": 1}
    with pytest.raises(ValueError, match=r"class_ids: must be among the labels' classes \(0, 1\), got \(1, 2\)"):
        Scores.of(confusion, [2, 1], [1, 0])


def test_what_cannot_be_scored_is_told_before_the_work_and_leaves_the_network_as_it_was():
    class Seen(torch.nn.Module):
        calls = 0

        def forward(self, images):
            self.calls += 1
            raise ValueError("a picture that cannot be read")

    batch = (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [torch.zeros(8, 8, dtype=torch.uint8)], ["a"])
    model = Seen().train()
    for class_ids, calls, rule in (([2], 0, r"class_ids: must be among .* \(0, 1\)"), ([1], 1, "a picture that")):
        with pytest.raises(ValueError, match=rule):
            evaluate(model, [batch], class_ids, "rgb", torch.device("cpu"), labelled_ids=[0, 1])
        assert model.calls == calls
        assert model.training


def test_a_label_outside_the_classes_is_an_error():
    predicted = torch.zeros(2, 2, dtype=torch.uint8)
    for wrong in (19, 254):
        with pytest.raises(ValueError, match=rf"labels must be in 0-18, or 255, got \[3, {wrong}, 255\]"):
            count_confusion(predicted, torch.tensor([[3, 255], [wrong, 3]], dtype=torch.uint8), NUM_CLASSES)
    with pytest.raises(ValueError, match=r"shape of predicted \[2, 2\], got \[4\]"):
        count_confusion(predicted, torch.zeros(4, dtype=torch.uint8), NUM_CLASSES)


@needs_gpu
def test_a_gpu_counts_and_labels_as_the_cpu_does():
    predicted, labels = random_maps(3)
    counted = count_confusion(predicted.cuda(), labels.cuda(), NUM_CLASSES)
    assert counted.is_cuda
    assert torch.equal(counted.cpu(), count_confusion(predicted, labels, NUM_CLASSES))
    logits = torch.randn(19, 9, 17, device="cuda")
    expected = nn.functional.interpolate(logits[None], (40, 72), mode="bilinear", align_corners=True).argmax(1)[0]
    assert torch.equal(full_size_labels(logits, (40, 72)).long(), expected)


@pytest.mark.parametrize(
    ("num_classes", "small", "size"),
    [
        (19, (65, 129), (512, 1024)),
        (19, (5, 9), (33, 64)),
        (2, (3, 3), (1, 50)),
        (7, (1, 1), (9, 4)),
        (5, (8, 8), (3, 3)),
    ],
)
def test_labels_class_by_class_equal_the_arg_max_of_all(num_classes, small, size):
    logits = torch.randn(num_classes, *small, generator=torch.Generator().manual_seed(0))
    logits[1] = logits[0]  # ties everywhere
    all_at_once = nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=True)[0]
    labels = full_size_labels(logits, size)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), all_at_once.argmax(0))


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


def test_a_class_that_the_labels_never_have_has_no_iou_though_it_was_predicted():
    labels, predicted = torch.tensor([0, 0, 0, 1, IGNORE]), torch.tensor([0, 2, 2, 1, 2])
    scores = Scores.of(count_confusion(predicted, labels, 3), range(3), sets={"all": range(3), "never": [2]})
    assert scores.iou[0] == pytest.approx(1 / 3)  # what was taken for class 2 counts against class 0 all the same
    assert math.isnan(scores.iou[2])
    assert scores.miou == scores.means["all"] == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(scores.means["never"])
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


def test_a_batch_scores_as_its_images_do_and_labels_may_differ_in_size():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 8, 12), dtype=torch.uint8, generator=rng)
    labels = [torch.randint(0, 2, size, dtype=torch.uint8, generator=rng) for size in ((16, 24), (5, 7), (1, 30))]
    one_by_one = [(image[None], [label], ["x"]) for image, label in zip(images, labels, strict=True)]
    cpu = torch.device("cpu")
    together, first = evaluate(Threshold(), [(images, labels, ["x"] * 3)], [1], "bgr", cpu, 2, labelled_ids=[0, 1])
    alone, _ = evaluate(Threshold(), one_by_one, [1], "bgr", cpu, labelled_ids=[0, 1])
    assert together == alone
    assert (list(together.iou), together.miou) == ([0, 1], together.iou[1])
    assert [tuple(label.shape) for _, _, label in first] == [(16, 24)]


def test_the_pictures_are_spread_over_the_set():
    batches = [(torch.full((1, 3, 8, 8), i, dtype=torch.uint8), [torch.zeros(8, 8).byte()], ["x"]) for i in range(7)]
    for keep, expected in ((0, []), (2, [0, 3]), (9, [*range(7)])):
        _, pictures = evaluate(Threshold(), batches, [0], "rgb", torch.device("cpu"), keep)
        assert [int(image[0, 0, 0]) for image, _, _ in pictures] == expected


def test_logits_that_are_not_finite_and_no_batch_are_errors():
    class Broken(Threshold):
        def forward(self, images):
            features, logits = super().forward(images)
            logits[0, 1, 0, 0] = torch.inf
            return features, logits

    batch = (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [torch.zeros(8, 8, dtype=torch.uint8)], ["one"])
    with pytest.raises(ValueError, match="logits must be finite"):
        evaluate(Broken(), [batch], [0, 1], "rgb", torch.device("cpu"))
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(Threshold(), [], [0, 1], "rgb", torch.device("cpu"))
