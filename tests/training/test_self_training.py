"""Online self-training: what is pasted and how it counts, the mean teacher, and the loss of a step by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from simfast.config import Config
from simfast.models import Discriminator, deeplab_v2, normalise
from simfast.models.upsampled import upsample, upsampled_segmentation_loss
from simfast.testing import Calls
from simfast.training.self_training import MeanTeacher, draw_order, label_confidently, mix, pasted_pixels
from simfast.training.step import Trainer


def test_half_of_the_classes_of_each_map_are_pasted_rounded_up_and_never_what_is_ignored():
    labels = torch.tensor([[[0, 0, 3], [2, 255, 255]], [[1, 1, 1], [1, 1, 255]]], dtype=torch.uint8)
    order = torch.tensor([[0.9, 0.0, 0.1, 0.2], [0.5, 0.5, 0.0, 0.0]])
    pasted = pasted_pixels(labels, order)
    assert pasted.tolist() == [[[False, False, True], [True, False, False]], [[True] * 3, [True, True, False]]]
    assert not pasted_pixels(torch.full((1, 2, 2), 255, dtype=torch.uint8), order[:1]).any()


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(1, 19))
def test_every_class_is_pasted_whole_or_not_at_all(seed, step, count):
    labels = torch.randint(count, (2, 9, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    order = draw_order(seed, step, 2, 19)
    pasted = pasted_pixels(labels, order)
    for one, mask in zip(labels, pasted, strict=True):
        present, taken = set(one.unique().tolist()), set(one[mask].unique().tolist())
        assert len(taken) == (len(present) + 1) // 2
        assert taken.isdisjoint(one[~mask].unique().tolist())
    assert torch.equal(order, draw_order(seed, step, 2, 19))
    assert not torch.equal(order, draw_order(seed, step + 1, 2, 19))


def test_pasted_pixels_count_wholly_and_the_others_as_far_as_their_image_is_trusted():
    source, target = torch.full((1, 3, 2, 2), 7, dtype=torch.uint8), torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)
    labels, pseudo = torch.tensor([[[0, 1], [1, 255]]], dtype=torch.uint8), torch.tensor([[[5, 5], [6, 6]]])
    images, mixed, weights = mix(source, labels, target, pseudo, torch.tensor([0.25]), torch.tensor([[0.5, 0.1]]))
    assert images[0].tolist() == [[[9, 7], [7, 9]]] * 3
    assert mixed.tolist() == [[[5, 1], [1, 6]]]
    assert weights.tolist() == [[[0.25, 1], [1, 0.25]]]


def test_a_source_image_of_another_size_is_brought_to_the_targets():
    labels = torch.zeros(1, 6, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 1
    target, pseudo = torch.zeros(1, 3, 3, 12, dtype=torch.uint8), torch.full((1, 3, 12), 2)
    source = (labels * 100)[:, None].expand(1, 3, 6, 8)
    images, mixed, _ = mix(source, labels, target, pseudo, torch.zeros(1), torch.tensor([[0.9, 0.1]]))
    assert mixed[0].tolist() == [[2] * 6 + [1] * 6] * 3
    assert (images[0, :, :, 8:] == 100).all()
    assert not images[0, :, :, :6].any()


def test_the_share_of_sure_pixels_is_an_images_weight():
    maps = torch.tensor([[[[0.99, 0.5]], [[0.01, 0.5]]], [[[0.1, 0.02]], [[0.9, 0.98]]]])
    labels, weight = label_confidently(maps, 0.968)
    assert labels.tolist() == [[[0, 0]], [[1, 1]]]
    assert weight.tolist() == [0.5, 0.5]


def test_the_teacher_takes_all_buffers_of_one_dtype_at_once():
    teacher = MeanTeacher(torch.nn.Sequential(*(torch.nn.BatchNorm1d(1) for _ in range(9))), 0.75)
    with Calls() as calls:
        teacher.follow()
    copies = [name for name in calls.names if "copy" in name]
    assert copies == ["aten._foreach_copy_.default"] * 2


def test_the_teacher_is_the_mean_of_the_first_steps_then_a_running_one():
    model = torch.nn.BatchNorm1d(1)
    teacher, weights = MeanTeacher(model, 0.75), []
    for step, value in enumerate((4.0, 8.0, 0.0, 0.0, 16.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(3)
        teacher.set_step(step)
        teacher.follow()
        weights.append(float(teacher.network.weight))
    assert weights == pytest.approx([4, 6, 4, 3, 0.75 * 3 + 0.25 * 16])
    assert float(teacher.network.running_mean) == 16
    assert int(teacher.network.num_batches_tracked) == 3
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.network.training


def test_weighted_cross_entropy_is_torchs_on_upsampled_logits():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, generator=g, dtype=torch.float32).requires_grad_()
    labels = torch.randint(5, (2, 13, 17), generator=g)
    labels[0, :3] = 255
    weights = torch.rand(2, 13, 17, generator=g)
    plain = F.cross_entropy(upsample(logits, (13, 17)), labels, ignore_index=255, reduction="none")
    plain = (plain * weights).sum() / (labels != 255).sum()
    loss, _ = upsampled_segmentation_loss(logits, labels, weights=weights)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, plain)))


def test_the_loss_of_a_step_is_the_students_on_what_the_teacher_labels():
    torch.manual_seed(0)
    config = Config(
        method="aa",
        arch="resnet18",
        self_training="online",
        confidence=0.2,
        source_size=(64, 64),
        target_size=(64, 64),
        seed=3,
        lr=1e-3,
        steps=5,
        schedule_steps=9,
    )
    trainer = Trainer(config, deeplab_v2("resnet18", 19), Discriminator(19), None, "rgb", torch.device("cpu"))
    g, trusted = torch.Generator().manual_seed(1), []
    for step in range(3):
        source, target = (torch.randint(256, (2, 3, 64, 64), generator=g, dtype=torch.uint8) for _ in range(2))
        labels = torch.randint(19, (2, 4, 4), generator=g).byte().repeat_interleave(16, 1).repeat_interleave(16, 2)
        student, teacher = (copy.deepcopy(x) for x in (trainer.model, trainer.teacher.network))
        with torch.no_grad():
            maps = upsample(teacher(normalise(target, "rgb"))[1], (64, 64)).softmax(1)
            expected = 0
            images, mixed, weights = target.clone(), maps.argmax(1), torch.empty(2, 64, 64)
            for i in range(2):
                order = draw_order(3, step, 2, 19)[i]
                present = sorted(labels[i].unique().tolist(), key=lambda c: order[c])
                mask = torch.isin(labels[i], torch.tensor(present[: (len(present) + 1) // 2]).byte())
                weights[i] = (maps[i].max(0).values > 0.2).float().mean()
                trusted.append(float(weights[i, 0, 0]))
                images[i][:, mask], mixed[i][mask], weights[i][mask] = source[i][:, mask], labels[i][mask].long(), 1
            logits = upsample(student(normalise(images, "rgb"))[1], (64, 64))
            expected = (F.cross_entropy(logits, mixed, reduction="none") * weights).mean()
        losses = trainer.step(step, source, labels, target)
        torch.testing.assert_close(losses["mix"], expected, rtol=1e-4, atol=1e-5)
        for old, average, new in zip(
            teacher.parameters(), trainer.teacher.network.parameters(), trainer.model.parameters(), strict=True
        ):
            torch.testing.assert_close(average, old + (new - old) / (step + 1))
    assert any(0.1 < share < 0.9 for share in trusted)


@pytest.mark.parametrize("method", ["source-only", "target-only"])
def test_methods_without_target_images_have_none(method):
    with pytest.raises(ValueError, match=r"self_training: must be none where no target image .* got 'online'"):
        Config(method=method, self_training="online")
