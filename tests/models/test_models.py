"""DeepLabV2 and the discriminator: names, sizes, dilations and strides of the AdaptSegNet family."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from simfast.models import ARCHITECTURES, Discriminator, deeplab_v2

# Written down from the family's own models; a sample that fixes depth, width and place of every kind of tensor.
FAMILY_RESNET101 = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.running_var": (64,),
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.0.downsample.1.running_mean": (256,),
    "layer1.2.conv3.weight": (256, 64, 1, 1),
    "layer2.0.downsample.0.weight": (512, 256, 1, 1),
    "layer2.3.conv2.weight": (128, 128, 3, 3),
    "layer3.0.downsample.0.weight": (1024, 512, 1, 1),
    "layer3.22.bn2.bias": (256,),
    "layer4.0.downsample.1.weight": (2048,),
    "layer4.2.conv2.weight": (512, 512, 3, 3),
    "layer4.2.bn3.running_mean": (2048,),
    "layer6.conv2d_list.0.weight": (19, 2048, 3, 3),
    "layer6.conv2d_list.3.bias": (19,),
}
TORCHVISION_RESNET18 = {
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    "layer1.1.bn2.weight": (64,),
    "layer2.0.conv1.weight": (128, 64, 3, 3),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    "layer4.0.downsample.1.running_var": (512,),
    "layer4.1.conv2.weight": (512, 512, 3, 3),
    "layer6.conv2d_list.1.weight": (19, 512, 3, 3),
}
FAMILY_VGG16 = {
    "features.0.weight": (64, 3, 3, 3),
    "features.10.weight": (256, 128, 3, 3),
    "features.21.bias": (512,),
    "features.23.weight": (512, 512, 3, 3),
    "features.27.weight": (512, 512, 3, 3),
    "features.29.weight": (1024, 512, 3, 3),
    "features.31.weight": (1024, 1024, 3, 3),
    "classifier.conv2d_list.3.weight": (19, 1024, 3, 3),
}


def on_meta(arch, **options):
    with torch.device("meta"):
        return deeplab_v2(arch, **({"num_classes": 19} | options))


@pytest.mark.parametrize(
    ("arch", "sample", "num_tensors"),
    [
        # 104 convolutions, 104 batch norms of four counted tensors, four branches of two.
        ("resnet101", FAMILY_RESNET101, 104 + 4 * 104 + 8),
        ("resnet50", {k: v for k, v in FAMILY_RESNET101.items() if "layer3.22" not in k}, 53 + 4 * 53 + 8),
        ("resnet18", TORCHVISION_RESNET18, 20 + 4 * 20 + 8),
        ("vgg16", FAMILY_VGG16, 2 * 15 + 8),
    ],
)
def test_state_dict_has_the_names_and_shapes_of_the_family(arch, sample, num_tensors):
    shapes = {k: tuple(v.shape) for k, v in on_meta(arch).state_dict().items() if "num_batches" not in k}
    assert {name: shapes.get(name) for name in sample} == sample
    assert len(shapes) == num_tensors
    assert "layer1.0.downsample.0.weight" in shapes or arch in ("resnet18", "vgg16")
    assert not any(name.startswith(("layer1.1.downsample", "layer5", "fc")) for name in shapes)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(1280, 720, (91, 161)), (1024, 512, (65, 129)), (1280, 760, (96, 161))]
)
@pytest.mark.parametrize(("arch", "channels"), [("resnet101", 2048), ("resnet18", 512)])
def test_feature_map_has_the_size_of_the_papers_stride_8(arch, channels, width, height, size):
    model = on_meta(arch)
    features, logits = model(torch.empty(2, 3, height, width, device="meta"))
    assert features.shape == (2, channels, *size)
    assert logits.shape == (2, 19, *size)
    assert model.num_features == channels


def test_vgg16_keeps_stride_8_without_ceil_mode():
    features, logits = on_meta("vgg16", num_classes=16)(torch.empty(1, 3, 720, 1280, device="meta"))
    assert features.shape == (1, 1024, 90, 160)
    assert logits.shape == (1, 16, 90, 160)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 47)])
def test_resnet_features_are_finite_and_nonnegative_at_odd_sizes(size):
    torch.manual_seed(0)
    features, logits = deeplab_v2("resnet18", 19).eval()(torch.randn(1, 3, *size))
    halves = [-(-n // 2) // 2 + 1 for n in size]
    assert features.shape[2:] == logits.shape[2:] == tuple(-(-n // 2) for n in halves)
    assert features.isfinite().all()
    assert logits.isfinite().all()
    assert features.min() >= 0
    assert features.max() > 0


def test_every_block_of_layer3_and_layer4_is_dilated_and_no_stage_after_layer2_strides():
    model = on_meta("resnet101")
    for stage, dilation in (("layer1", 1), ("layer2", 1), ("layer3", 2), ("layer4", 4)):
        for block in getattr(model, stage):
            assert block.conv2.dilation == block.conv2.padding == (dilation, dilation)
    strided = [name for name, module in model.named_modules() if getattr(module, "stride", 1) in (2, (2, 2))]
    assert strided == ["conv1", "maxpool", "layer2.0.conv1", "layer2.0.downsample.0"]
    assert model.maxpool.ceil_mode

    small = on_meta("resnet18")
    assert [(b.conv1.dilation, b.conv2.dilation) for b in small.layer3] == [((2, 2), (2, 2))] * 2
    assert [(b.conv1.dilation, b.conv2.dilation) for b in small.layer4] == [((4, 4), (4, 4))] * 2
    assert small.layer2[0].conv1.stride == (2, 2)


def test_vgg16_dilates_conv5_by_2_and_fc6_fc7_by_4():
    layers = on_meta("vgg16").features
    dilations = {i: layer.dilation[0] for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)}
    assert dilations == {**dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21), 1), 23: 2, 25: 2, 27: 2, 29: 4, 31: 4}
    assert [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)] == [4, 9, 16]
    assert isinstance(layers[-1], nn.ReLU)


@pytest.mark.parametrize("dilations", [(6, 12, 18, 24), (6, 12)])
def test_logits_are_the_sum_of_the_branches(dilations):
    torch.manual_seed(0)
    head = deeplab_v2("resnet18", num_classes=5, head_dilations=dilations).head
    features = torch.randn(1, 512, 9, 31)
    branches = [
        nn.functional.conv2d(features, c.weight, c.bias, padding=d, dilation=d)
        for c, d in zip(head.conv2d_list, dilations, strict=True)
    ]
    torch.testing.assert_close(head(features), torch.stack(branches).sum(0))
    assert head.conv2d_list[0].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_classify_equals_the_head_on_1x1_maps():
    torch.manual_seed(0)
    model = deeplab_v2("resnet18", 19).double()
    vectors = torch.randn(7, 512, dtype=torch.float64)
    torch.testing.assert_close(model.classify(vectors), model.head(vectors[:, :, None, None])[:, :, 0, 0])
    assert model.classify(vectors[:0]).shape == (0, 19)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_groups_hold_each_trainable_parameter_once(arch):
    model = on_meta(arch)
    backbone, head = model.parameter_groups(2.5e-4)
    assert (backbone["lr"], head["lr"]) == (2.5e-4, 2.5e-3)
    grouped = [id(p) for group in (backbone, head) for p in group["params"]]
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(id(p) for p in trainable.values())
    assert {id(p) for p in head["params"]} == {id(p) for n, p in trainable.items() if n.startswith(model.head_name)}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert frozen == {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    torch.optim.SGD([backbone, head], momentum=0.9, nesterov=True)


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_running_statistics_move_in_train_mode_and_stay_put_when_frozen(mode):
    torch.manual_seed(0)
    model = deeplab_v2("resnet18", num_classes=3, batch_norm=mode).eval().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameter_groups(0.01), momentum=0.9)
    model(torch.randn(1, 3, 33, 33))[1].square().mean().backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {name for name in before if "running" in name}
    assert statistics & changed == (statistics if mode == "train" else set())
    affine = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert affine
    assert not affine & changed
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= changed


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_per_domain_running_statistics_are_those_of_the_target_alone(arch):
    torch.manual_seed(0)
    both = deeplab_v2(arch, num_classes=3, batch_norm="per-domain")
    target_alone = deeplab_v2(arch, num_classes=3)
    target_alone.load_state_dict(both.state_dict())
    for source, target in torch.randn(2, 2, 2, 3, 33, 33):
        expected = copy.deepcopy(target_alone)(source)
        for ours, theirs in zip(both(source, domain="source"), expected, strict=True):
            assert torch.equal(ours, theirs)
        for ours, theirs in zip(both(target, domain="target"), target_alone(target), strict=True):
            assert torch.equal(ours, theirs)
    theirs = target_alone.state_dict()
    assert theirs["layer4.1.bn2.running_mean"].abs().min() > 0
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in both.state_dict().items())
    both.eval(), target_alone.eval()
    assert torch.equal(both(source, domain="source")[1], target_alone(source)[1])


def test_the_domain_matters_in_per_domain_training_alone():
    torch.manual_seed(0)
    source, target = deeplab_v2("resnet18", num_classes=3), deeplab_v2("resnet18", num_classes=3)
    source.load_state_dict(target.state_dict())
    images = torch.randn(1, 3, 33, 33)
    source(images, domain="source"), target(images)
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_per_domain_compiles_whole_with_one_graph_for_each_domain():
    torch.manual_seed(0)
    model = deeplab_v2("resnet18", num_classes=3, batch_norm="per-domain")
    before = model.bn1.running_mean.clone()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    images = torch.randn(1, 3, 33, 33)
    compiled(images, domain="source")
    assert torch.equal(model.bn1.running_mean, before)
    compiled(images, domain="target")
    assert not torch.equal(model.bn1.running_mean, before)
    compiled(images, domain="source"), compiled(images, domain="target")
    assert counter.frame_count == 2


def test_random_resnet_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    features, _ = deeplab_v2("resnet18", 19)(torch.randn(1, 3, 64, 64))
    assert 0.1 < features.std() < 10


def test_vgg16_starts_fc6_and_fc7_small_and_the_other_convolutions_at_kaiming_scale():
    torch.manual_seed(0)
    layers = deeplab_v2("vgg16", 19).features
    # PyTorch's default is uniform in +-1/sqrt(fan in); kaiming normal has variance 2 / fan out.
    assert layers[29].weight.std().item() == pytest.approx((3 * 9 * 512) ** -0.5, rel=0.01)
    assert layers[31].weight.std().item() == pytest.approx((3 * 9 * 1024) ** -0.5, rel=0.01)
    assert layers[27].weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)
    assert not layers[27].bias.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arch": "resnet34"}, "arch must be one of resnet18.*'resnet34'"),
        ({"arch": "resnet18", "num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"arch": "resnet18", "head_dilations": ()}, "head_dilations must be"),
        ({"arch": "resnet18", "batch_norm": "sync"}, "batch_norm must be one of train, frozen, per-domain, got 'sync'"),
        ({"arch": "resnet18", "resnet_style": "v1c"}, "resnet_style must be one of caffe, torchvision, got 'v1c'"),
    ],
)
def test_a_wrong_option_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        deeplab_v2(**{"num_classes": 19} | options)


def test_a_wrong_input_shape_is_named():
    model = on_meta("resnet18")
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got \[3, 8, 8\]"):
        model(torch.empty(3, 8, 8, device="meta"))
    with pytest.raises(ValueError, match="domain must be one of source, target, got 'city'"):
        model(torch.empty(1, 3, 8, 8, device="meta"), domain="city")
    with pytest.raises(ValueError, match=r"vectors must be \[N, 512\], got \[4, 19\]"):
        model.classify(torch.empty(4, 19, device="meta"))


def test_discriminator_has_the_names_and_layout_of_the_family():
    with torch.device("meta"):
        model = Discriminator(19)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "weight" in name} == {
        "conv1.weight": (64, 19, 4, 4),
        "conv2.weight": (128, 64, 4, 4),
        "conv3.weight": (256, 128, 4, 4),
        "conv4.weight": (512, 256, 4, 4),
        "classifier.weight": (1, 512, 4, 4),
    }
    assert {(m.stride, m.padding) for m in model.children()} == {((2, 2), (1, 1))}
    assert model(torch.empty(2, 19, 720, 1280, device="meta")).shape == (2, 1, 22, 40)


def test_discriminator_computes_five_convolutions_with_leaky_relu_between():
    torch.manual_seed(0)
    model = Discriminator(3, width=4).double()
    maps = torch.randn(2, 3, 70, 45, dtype=torch.float64)
    kept = maps.clone()
    expected = maps
    for name in ("conv1", "conv2", "conv3", "conv4", "classifier"):
        layer = getattr(model, name)
        expected = nn.functional.conv2d(expected, layer.weight, layer.bias, stride=2, padding=1)
        if name != "classifier":
            expected = torch.where(expected > 0, expected, 0.2 * expected)
    torch.testing.assert_close(model(maps), expected)
    torch.testing.assert_close(maps, kept, rtol=0, atol=0)


@pytest.mark.parametrize("more_than", [3, 19])
def test_discriminator_takes_channels_of_zeros_up_to_a_multiple_of_8(more_than):
    torch.manual_seed(0)
    model, extra = Discriminator(more_than, width=4).double(), -more_than % 8
    maps = torch.randn(2, more_than, 40, 45, dtype=torch.float64, requires_grad=True)
    wide = nn.functional.pad(maps.detach(), (0, 0, 0, 0, 0, extra)).requires_grad_()
    found = []
    for x in (maps, wide):
        judgement = model(x)
        found.append([judgement, *torch.autograd.grad(judgement.square().sum(), [x, *model.parameters()])])
    found[1][1] = found[1][1][:, :more_than]
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain)
    assert model.conv1.weight.shape == (4, more_than, 4, 4)
    for wrong in (more_than - 1, more_than + 1, more_than + extra + 8):
        with pytest.raises(ValueError, match=rf"maps must be \[B, {more_than}, H, W\] or \[B, {more_than + extra}, H"):
            model(torch.zeros(1, wrong, 32, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"maps must be \[B, 8, H, W\], got \[1, 16, 32, 32\]"):
        Discriminator(8, width=4)(torch.zeros(1, 16, 32, 32))


def test_discriminator_names_its_smallest_input():
    model = Discriminator(3, width=4)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"at least 32 x 32 \(H x W\), got 31 x 64"):
        model(torch.randn(1, 3, 31, 64))
    with pytest.raises(ValueError, match=r"maps must be \[B, 3, H, W\] or \[B, 8, H, W\], .* got \[1, 4, 32, 32\]"):
        model(torch.randn(1, 4, 32, 32))
