"""Loading of weights: every kind of file, every silent miss, and the input conventions."""

import logging
import re

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from weight_files import (
    assert_loaded,
    branches,
    class_list,
    constant,
    numbered,
    own_checkpoint,
    saved,
    torchvision_vgg16,
)

from simfast.config.classes import CITYSCAPES
from simfast.models import deeplab_v2, load_weights, normalise
from simfast.models.weights_file import read_weights


def test_adaptsegnet_initial_weights_fill_the_backbone_and_lose_their_coco_head(tmp_path, caplog):
    backbone = numbered("resnet101")
    head = branches("Scale.layer5", 4, 21, 2048)
    # Files of that age are not zip archives.
    path = saved(tmp_path, {f"Scale.{k}": v for k, v in backbone.items()} | head, _use_new_zipfile_serialization=False)
    model = deeplab_v2("resnet101", 19)
    untouched = model.layer6.conv2d_list[0].weight.clone()
    with caplog.at_level(logging.INFO):
        report = load_weights(model, path)
    assert (report.matched, report.total, report.convention) == (520, 528, "bgr")
    assert {name for name, _ in report.dropped} == {name.removeprefix("Scale.") for name in head}
    assert report.missing == tuple(name for name in model.state_dict() if name.startswith("layer6"))
    assert_loaded(model, backbone)
    assert torch.equal(model.layer6.conv2d_list[0].weight, untouched)
    assert len(caplog.records) == 1
    assert "weights: 520 of 520 backbone tensors matched" in caplog.text
    assert "520 of the file's 528 tensors used; names without Scale.; a ResNet in caffe's style" in caplog.text
    assert (report.used, report.in_file) == (520, 528)
    assert "dropped 8, a head of 21 classes, the model has 19: layer5.conv2d_list.0.weight" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_checkpoint_loads_into_its_two_live_branches(tmp_path, caplog, prefix):
    state = numbered("resnet18") | branches("layer6", 4, 19, 512)
    path = saved(tmp_path, {prefix + k: v for k, v in (state | branches("layer5", 4, 19, 256)).items()})
    model = deeplab_v2("resnet18", 19, head_dilations=(6, 12))
    report = load_weights(model, path, head_dilations=(6, 12))
    extra = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("layer6.conv2d_list.2", "layer6.conv2d_list.3"))
    }
    assert_loaded(model, {name: tensor for name, tensor in state.items() if name not in extra})
    assert (report.matched, report.total, report.missing, report.convention) == (104, 104, (), "bgr")
    assert {n: why for n, why in report.dropped if n.startswith("layer6")} == dict.fromkeys(
        extra, "a branch beyond the 2 in use"
    )
    assert (report.used, report.in_file) == (104, 116)

    whole = deeplab_v2("resnet18", 19)
    for said in ({}, {"head_dilations": (6, 12)}):  # the model does not speak for the file
        with pytest.raises(ValueError, match="head_dilations"):
            load_weights(whole, path, **said)
    load_weights(whole, path, head_dilations=(6, 12, 18, 24))
    assert_loaded(whole, state)


def test_torchvision_resnet_fills_the_backbone_and_is_rgb(tmp_path):
    state = numbered("resnet18")
    counters = {"bn1.num_batches_tracked": torch.tensor(7)}
    path = saved(tmp_path, state | counters | {"fc.weight": constant(0, 1000, 512), "fc.bias": constant(0, 1000)})
    model = deeplab_v2("resnet18", 19, resnet_style="torchvision")
    report = load_weights(model, path)
    assert_loaded(model, state | counters)
    assert (report.convention, report.used, report.in_file) == ("rgb", 100, 102)  # counters are not counted
    assert report.dropped == (("fc.weight", "an ImageNet classifier"), ("fc.bias", "an ImageNet classifier"))
    caffe = deeplab_v2("resnet18", 19)
    assert load_weights(caffe, path, "bgr").convention == "bgr"
    with pytest.raises(ValueError, match=r"model must have resnet_style 'torchvision', .* rgb weights .* got 'caffe'"):
        load_weights(caffe, path)
    assert load_weights(caffe, path, resnet_style="caffe").convention == "rgb"


def test_torchvision_vgg16_shifts_conv5_and_leaves_fc6_and_fc7(tmp_path):
    classifier = {f"classifier.{i}.weight": constant(0, 4096, 4096) for i in (0, 3, 6)}
    foreign = {"temperature": constant(0, 1)}  # without a dot, as a parameter of a module around the network
    model = deeplab_v2("vgg16", 19)
    fc6 = model.features[29].weight.clone()
    report = load_weights(model, saved(tmp_path, torchvision_vgg16() | classifier | foreign))
    assert [model.features[i].weight.unique().tolist() for i in (21, 23, 25, 27)] == [[21], [24], [26], [28]]
    assert model.features[27].bias.unique().tolist() == [28]
    assert torch.equal(model.features[29].weight, fc6)
    assert (report.matched, report.total, report.convention) == (26, 38, "rgb")
    assert dict(report.dropped) == dict.fromkeys(classifier, "an ImageNet classifier") | {
        "temperature": "not in the model"
    }
    assert [n for n in report.missing if n.startswith("features")] == [
        f"features.{i}.{kind}" for i in (29, 31) for kind in ("weight", "bias")
    ]


def test_half_precision_convolutions_without_a_classifier_need_their_convention(tmp_path):
    path = saved(tmp_path, {name: tensor.half() for name, tensor in torchvision_vgg16().items()})
    model = deeplab_v2("vgg16", 19)
    before = model.features[0].weight.clone()
    with pytest.raises(ValueError, match=r"convention must be given for .*weights\.pth"):
        load_weights(model, path)
    assert torch.equal(model.features[0].weight, before)
    assert load_weights(model, path, convention="bgr").convention == "bgr"
    assert model.features[27].weight.dtype == torch.float32
    assert model.features[27].weight.unique().tolist() == [28]


def test_family_vgg16_loads_whole(tmp_path):
    state = numbered("vgg16") | branches("classifier", 4, 19, 1024)
    model = deeplab_v2("vgg16", 19)
    report = load_weights(model, saved(tmp_path, state), head_dilations=(6, 12, 18, 24))
    assert_loaded(model, state)
    assert (report.matched, report.total, report.dropped, report.convention) == (38, 38, (), "bgr")


def test_own_checkpoint_brings_its_convention(tmp_path, caplog):
    torch.manual_seed(0)
    source, model = deeplab_v2("resnet18", num_classes=5), deeplab_v2("resnet18", num_classes=5)
    source(torch.randn(1, 3, 33, 33))
    content = {"format": "simfast", "model": source.state_dict(), "convention": "rgb", "config": {"lr": 1.0}, "step": 3}
    report = load_weights(model, saved(tmp_path, content))
    assert_loaded(model, source.state_dict())
    assert (report.matched, report.total, report.convention) == (108, 108, "rgb")
    torch.save(content, tmp_path / "best.pt")
    assert load_weights(deeplab_v2("resnet18", num_classes=5), tmp_path).matched == 108  # as a run folder
    assert "head_dilations" not in caplog.text
    with pytest.raises(ValueError, match=r"convention must be 'rgb', which .* records, got 'bgr'"):
        load_weights(model, saved(tmp_path, content), "bgr")
    with pytest.raises(ValueError, match="records must be one of bgr, rgb, got 'hsv'"):
        load_weights(model, saved(tmp_path, content | {"convention": "hsv"}))
    with pytest.raises(ValueError, match="convention must be given"):
        load_weights(model, saved(tmp_path, content | {"convention": None}))
    fewer = content | {"config": {"head_dilations": [6, 12]}}
    with pytest.raises(ValueError, match=r"a branch for each of the head_dilations .* \(\(6, 12\)\), got 4"):
        load_weights(deeplab_v2("resnet18", 5, (6, 12)), saved(tmp_path, fewer))


def test_a_head_of_other_classes_is_dropped_whole(tmp_path):
    path = saved(tmp_path, numbered("resnet18") | branches("layer6", 4, 19, 512))
    model = deeplab_v2("resnet18", num_classes=11)
    report = load_weights(model, path)
    assert (report.matched, report.total) == (100, 108)
    assert {why for _, why in report.dropped} == {"a head of 19 classes, the model has 11"}
    assert len(report.dropped) == len(report.missing) == 8


def test_a_trained_head_is_taken_only_for_the_same_classes(tmp_path):
    ours, other = class_list("soil", "leaf", "weed"), class_list("soil", "weed", "leaf")
    source, fresh = deeplab_v2("resnet18", 3), deeplab_v2("resnet18", 3)
    path = saved(tmp_path, own_checkpoint(source, classes=ours))
    before = {name: tensor.clone() for name, tensor in fresh.head.state_dict().items()}
    report = load_weights(fresh, path, classes=other)
    assert {why for _, why in report.dropped} == {"a head of other classes (mine): class 1 is leaf there, weed here"}
    assert (report.matched, report.total) == (100, 108)
    assert_loaded(fresh.head, before)
    assert load_weights(fresh, path, classes=class_list("soil", "leaf", "weed", blue=200)).matched == 108
    assert_loaded(fresh, source.state_dict())


def test_a_head_of_a_file_that_is_not_ours_has_cityscapes_classes(tmp_path):
    path = saved(tmp_path, numbered("resnet18") | branches("layer6", 4, 19, 512))
    mine = class_list("lane", *CITYSCAPES.names[1:])
    report = load_weights(deeplab_v2("resnet18", 19), path, classes=mine)
    assert {why for _, why in report.dropped} == {
        "a head of other classes (cityscapes): class 0 is road there, lane here"
    }
    same = {"classes": CITYSCAPES, "head_dilations": (6, 12, 18, 24)}
    assert load_weights(deeplab_v2("resnet18", 19), path, **same).dropped == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.pop("layer3.1.bn2.running_var"),
            r"99 of 100 backbone tensors; 1 missing: layer3\.1\.bn2\.running_var",
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if "layer4" in n],
            r"75 of 100 backbone.*25 missing: layer4.*and 21 more",
        ),
        (
            lambda s: s.update({f"net.{n}": s.pop(n) for n in list(s)}),
            r"0 of 100 backbone tensors.*; it has net\.conv1\.weight, net\.bn1\.weight",
        ),
        (
            lambda s: s.update({"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}),
            r"layer2\.0\.conv1\.weight in .*weights\.pth must be \[128, 64, 3, 3\] for resnet18, got \[128, 64, 1, 1\]",
        ),
        (
            lambda s: s.update({"layer3.2.conv1.weight": torch.zeros(1)}),
            r"1 backbone tensors.*layer3\.2\.conv1\.weight",
        ),
        (
            lambda s: s.update(branches("layer6", 2, 19, 512)),
            r"head_dilations: must be given .* 2 branches, of which the file does not tell the dilations",
        ),
        (
            lambda s: [s.update(branches("layer6", 4, 19, 512)), s.pop("layer6.conv2d_list.2.bias")],
            r"must have its head whole, got it without layer6\.conv2d_list\.2\.bias",
        ),
        (
            lambda s: s.update({"bn1.running_mean": torch.zeros(64, dtype=torch.int64)}),
            r"bn1\.running_mean in .* must be of real floating numbers, got torch\.int64",
        ),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.complex64)}),
            r"conv1\.weight in .* must be of real floating numbers, got torch\.complex64",
        ),
        (
            lambda s: s.update({"layer1.0.bn1.bias": torch.full((64,), float("nan"))}),
            r"layer1\.0\.bn1\.bias in .* must be finite",
        ),
        (
            lambda s: s.update(branches("layer6", 4, 19, 512) | {"layer6.conv2d_list.1.bias": constant("nan", 19)}),
            r"layer6\.conv2d_list\.1\.bias in .* must be finite",
        ),
        (
            lambda s: s.update({"bn1.bias": torch.zeros(64).to_sparse()}),
            r"bn1\.bias in .* must be of real floating numbers, got torch\.float32, torch\.sparse_coo",
        ),
        (
            lambda s: s.update(branches("layer6", 4, 19, 256)),
            r"layer6\.conv2d_list\.0\.weight in .* got \[19, 256, 3, 3\]",
        ),
    ],
)
def test_what_would_be_missed_in_silence_raises_and_leaves_the_model_alone(tmp_path, change, said):
    state = numbered("resnet18")
    change(state)
    model = deeplab_v2("resnet18", 19)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        load_weights(model, saved(tmp_path, state), "rgb")
    assert_loaded(model, before)


def test_a_deeper_resnet_is_not_taken_for_the_model(tmp_path):
    with pytest.raises(ValueError, match=r"must be a file for resnet50, got 255 backbone tensors .*layer3\.6\.conv1"):
        load_weights(deeplab_v2("resnet50", 19), saved(tmp_path, numbered("resnet101")), "bgr")


def test_vgg16_of_the_family_without_fc6_is_incomplete(tmp_path):
    state = {name: tensor for name, tensor in numbered("vgg16").items() if not name.startswith("features.29")}
    with pytest.raises(ValueError, match=r"28 of 30 backbone tensors; 2 missing: features\.29\.weight"):
        load_weights(deeplab_v2("vgg16", 19), saved(tmp_path, state), "bgr")


def test_a_file_that_is_no_weights_file_is_named(tmp_path):
    model = deeplab_v2("resnet18", 19)
    with pytest.raises(FileNotFoundError, match=r"path must be a file or a run folder, got no .*nowhere\.pth"):
        load_weights(model, tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"got no .*best\.pt"):
        load_weights(model, tmp_path)
    for content in ({}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2)):
        with pytest.raises(ValueError, match=r"weights\.pth must hold a state dict.* got a \w+ without named tensors"):
            load_weights(model, saved(tmp_path, content))
    with pytest.raises(ValueError, match="convention must be one of bgr, rgb, got 'RGB'"):
        load_weights(model, saved(tmp_path, model.state_dict()), "RGB")


def test_of_both_stages_the_second_is_meant_and_a_first_one_alone_is_named(tmp_path):
    (tmp_path / "stage1").mkdir()
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "stage1" / "best.pt")
    message = f"got no {tmp_path / 'best.pt'} (of its stages {tmp_path / 'stage1'} alone has one)"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        read_weights(tmp_path)


def test_normalise_equals_numpy():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images.numpy().astype(np.float64).transpose(0, 2, 3, 1)
    bgr = x[..., ::-1] - np.array([104.00698793, 116.66876762, 122.67891434])
    rgb = (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    for convention, expected in (("bgr", bgr), ("rgb", rgb)):
        out = normalise(images, convention)
        assert out.dtype == torch.float32
        assert out.is_contiguous()
        np.testing.assert_allclose(
            out.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=2e-6 * abs(expected).max()
        )


@pytest.mark.parametrize("convention", ["bgr", "rgb"])
def test_normalise_makes_no_host_constants(convention):
    names = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.overloadpacket.__name__)
            assert (kwargs or {}).get("device") is None, func
            return func(*args, **(kwargs or {}))

    images = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    with Recorder():
        normalise(images, convention)
    # Arithmetic with scalars alone: a constant tensor would show up as lift_fresh, a factory or a copy to a device.
    assert names <= {"unbind", "_to_copy", "sub", "div", "stack"}
    assert normalise(images.to("meta"), convention).device.type == "meta"


def test_normalise_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\], got torch.float32 \[1, 3, 2, 2\]"):
        normalise(torch.zeros(1, 3, 2, 2), "rgb")
    with pytest.raises(ValueError, match="convention must be one of bgr, rgb, got 'caffe'"):
        normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "caffe")
