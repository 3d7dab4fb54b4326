"""A network comes back from a file alone: its shape, its classes, its input convention."""

import logging

import pytest
import torch
from weight_files import (
    assert_loaded,
    branches,
    class_list,
    constant,
    numbered,
    own_checkpoint,
    released_resnet,
    saved,
)

from simfast.config.classes import CITYSCAPES
from simfast.models import deeplab_v2, restore_model


def test_own_checkpoint_is_restored_with_its_own_network(tmp_path):
    torch.manual_seed(0)
    trained = deeplab_v2("resnet18", 19, head_dilations=(6, 12, 18), batch_norm="frozen")
    path = saved(tmp_path, own_checkpoint(trained, head_dilations=(6, 12, 18), batch_norm="frozen"))
    restored = restore_model(path, arch="resnet18", head_dilations=(6, 12, 18), convention="rgb")
    assert (restored.model.arch, restored.model.batch_norm, restored.convention) == ("resnet18", "frozen", "rgb")
    assert not restored.model.training
    assert restored.settings["target_size"] == [1024, 512]
    assert restored.weights.matched == restored.weights.total
    images = torch.randn(1, 3, 33, 65)
    assert torch.equal(restored.model(images)[1], trained.eval()(images)[1])
    for name, value, recorded in (
        ("arch", "resnet50", "'resnet18'"),
        ("head_dilations", (6, 12), r"\[6, 12, 18\]"),
        ("convention", "bgr", "'rgb'"),
    ):
        with pytest.raises(ValueError, match=rf"{name} must be {recorded}, which .*weights\.pth records, got"):
            restore_model(path, **{name: value})
    content = own_checkpoint(trained, head_dilations=(6, 12, 18))
    del content["config"]["arch"]
    with pytest.raises(ValueError, match="must record arch"):
        restore_model(saved(tmp_path, content))


def test_a_checkpoint_brings_its_classes_and_a_list_of_others_is_refused(tmp_path):
    mine = class_list("soil", "leaf", "weed")
    path = saved(tmp_path, own_checkpoint(deeplab_v2("resnet18", 3), classes=mine))
    assert restore_model(path).classes == mine
    assert restore_model(path).model.num_classes == 3
    repainted = class_list("soil", "leaf", "weed", blue=200)
    assert restore_model(path, classes=repainted).classes == repainted
    for names in (("soil", "weed", "leaf"), ("soil", "leaf")):
        said = r"classes: must name the 3 classes of .*weights\.pth in their order \(soil, leaf, weed\), got the "
        with pytest.raises(ValueError, match=rf"{said}{len(names)} of theirs \({', '.join(names)}\)"):
            restore_model(path, classes=class_list(*names, title="theirs"))
    old = own_checkpoint(deeplab_v2("resnet18", 19))
    del old["config"]["classes"]  # as before there were class lists
    assert restore_model(saved(tmp_path, old)).classes == CITYSCAPES


def test_a_file_that_is_not_ours_may_be_of_classes_that_are_named(tmp_path):
    path = saved(tmp_path, numbered("resnet18") | branches("layer6", 2, 3, 512))
    mine = class_list("soil", "leaf", "weed")
    restored = restore_model(path, classes=mine, head_dilations=(6, 12))
    assert (restored.classes, restored.model.num_classes, restored.settings) == (mine, 3, None)
    with pytest.raises(ValueError, match=r"a head of 3 classes, the model has 19"):
        restore_model(path, head_dilations=(6, 12))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_resnet101_checkpoint_is_restored_by_its_names(tmp_path, caplog, prefix):
    state = released_resnet("resnet101", layer5=1024, layer6=2048)
    path = saved(tmp_path, {prefix + name: tensor for name, tensor in state.items()})
    with caplog.at_level(logging.INFO):
        model, convention, settings, report = restore_model(path, head_dilations=(6, 12))
    live = {name: tensor for name, tensor in state.items() if not name.startswith("layer5")}
    unused = [name for name in live if name.startswith(("layer6.conv2d_list.2", "layer6.conv2d_list.3"))]
    assert_loaded(model, {name: tensor for name, tensor in live.items() if name not in unused})
    assert (model.arch, convention, settings) == ("resnet101", "bgr", None)
    assert [branch.dilation for branch in model.head.conv2d_list] == [(6, 6), (12, 12)]
    assert (report.matched, report.total, report.used, report.in_file) == (524, 524, 524, 536)
    assert "524 of the file's 536 tensors used" in caplog.text
    assert {name for name, _ in report.dropped} == {*unused, *(name for name in state if name.startswith("layer5"))}
    assert "520 of 520 backbone tensors matched, 4 of 4 of the head, bgr input" in caplog.text
    assert "dropped 8, an auxiliary head that the model does not have: layer5" in caplog.text
    assert "dropped 4, a branch beyond the 2 in use: layer6.conv2d_list.2.weight" in caplog.text


def test_released_vgg16_checkpoint_is_restored_by_its_names(tmp_path):
    state = released_resnet("vgg16", classifier=1024)
    model, convention, _, report = restore_model(saved(tmp_path, state), head_dilations=(6, 12))
    assert (model.arch, convention, report.matched, report.total) == ("vgg16", "bgr", 34, 34)
    assert_loaded(model, {name: tensor for name, tensor in state.items() if name in model.state_dict()})
    with pytest.raises(ValueError, match="must have the whole backbone of resnet101"):
        restore_model(tmp_path / "weights.pth", arch="resnet101")


def test_two_live_branches_predict_what_the_released_head_does(tmp_path):
    torch.manual_seed(0)
    trained = deeplab_v2("resnet18", 19).eval()  # four branches, all of them random
    restored = restore_model(saved(tmp_path, trained.state_dict()), head_dilations=(6, 12))
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        features, logits = restored.model(images)
        assert torch.equal(features, trained(images)[0])
        convolutions = trained.layer6.conv2d_list

        def released_head(x):
            out = convolutions[0](x)
            for i in range(len(convolutions) - 1):
                out += convolutions[i + 1](x)
                return out

        assert torch.equal(logits, released_head(features))
        whole = restore_model(tmp_path / "weights.pth", arch="resnet18", head_dilations=(6, 12, 18, 24))
        assert torch.equal(whole.model(images)[1], trained(images)[1])


def test_a_file_without_a_whole_head_cannot_predict(tmp_path):
    imagenet = saved(tmp_path, numbered("resnet18") | {"fc.weight": constant(0, 1000, 512)})
    with pytest.raises(ValueError, match=r"weights\.pth must have a segmentation head .* got 101 tensors without one"):
        restore_model(imagenet, arch="resnet18")
    initial = r"must have the whole network, .*\(a head of 21 classes, the model has 19"
    with pytest.raises(ValueError, match=initial):  # AdaptSegNet's initial weights
        restore_model(saved(tmp_path, numbered("resnet18", "Scale.") | branches("Scale.layer5", 4, 21, 512)))
    coco = saved(tmp_path, numbered("resnet18") | branches("layer6", 4, 21, 512))
    with pytest.raises(ValueError, match=r"whole network, got 100 of 108 .*a head of 21 classes, the model has 19"):
        restore_model(coco, arch="resnet18")
    one_branch = saved(tmp_path, numbered("resnet18") | branches("layer6", 1, 19, 512))
    with pytest.raises(ValueError, match=r"head_dilations must be at most 1, as many as the head .* has branches"):
        restore_model(one_branch, head_dilations=(6, 12))
    with pytest.raises(ValueError, match=r"must have the backbone of resnet18, .* a ResNet of 2, 2, 2, 3 blocks"):
        restore_model(
            saved(tmp_path, released_resnet("resnet18", layer6=512) | {"layer4.2.conv1.weight": torch.zeros(1)})
        )
    with pytest.raises(FileNotFoundError):
        restore_model(tmp_path / "nowhere.pth")
