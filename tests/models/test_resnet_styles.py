"""The dilated network computes what the strided one does that its weights come from: torchvision's, or caffe's."""

import pytest
import torch
import torch.nn.functional as F

from simfast.models import deeplab_v2

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def strided_resnet(state, arch, style, x, dilated=False):
    """The last feature map of a ResNet for classification; with dilated, torchvision's
    replace_stride_with_dilation=[False, True, True], where the first block of a stage has the dilation before.

    torchvision: the stride on the first 3x3 convolution; caffe: on the first convolution of a bottleneck.
    """

    def norm(x, name):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=False)

    def block(x, name, stride, dilation):
        convolutions = [number for number in (1, 2, 3) if f"{name}.conv{number}.weight" in state]
        out = x
        for number in convolutions:
            weight = state[f"{name}.conv{number}.weight"]
            wide = weight.shape[-1] == 3
            takes_stride = number == (2 if len(convolutions) == 3 and style == "torchvision" else 1)
            space = {"padding": dilation, "dilation": dilation} if wide else {}
            out = norm(F.conv2d(out, weight, stride=stride if takes_stride else 1, **space), f"{name}.bn{number}")
            out = F.relu(out) if number != convolutions[-1] else out
        if f"{name}.downsample.0.weight" in state:
            shortcut = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
            x = norm(shortcut, f"{name}.downsample.1")
        return F.relu(out + x)

    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    dilation = 1
    for stage, depth in enumerate(DEPTHS[arch], 1):
        before, stride = dilation, 1 if stage == 1 else 2
        if dilated and stage > 2:
            dilation, stride = dilation * 2, 1
        for i in range(depth):
            x = block(x, f"layer{stage}.{i}", stride if i == 0 else 1, before if i == 0 else dilation)
    return x


def with_statistics(arch, style):
    """A network whose batch norms all do something."""
    torch.manual_seed(0)
    model = deeplab_v2(arch, 3, head_dilations=(6,), resnet_style=style).double().eval()
    for name, tensor in model.state_dict().items():
        if ".bn" in name or "downsample.1" in name or name.startswith("bn1"):
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.uniform_(-0.2, 0.2)
    return model


@pytest.mark.parametrize(
    ("arch", "style"), [("resnet50", "torchvision"), ("resnet18", "torchvision"), ("resnet50", "caffe")]
)
def test_every_fourth_pixel_is_the_strided_networks(arch, style):
    model = with_statistics(arch, style)
    images = torch.randn(1, 3, 97, 129, dtype=torch.float64)  # sizes at which pooling in ceil mode is pooling
    with torch.no_grad():
        features = model(images)[0]
        expected = strided_resnet(model.state_dict(), arch, style, images)
    assert expected.shape[2:] == (4, 5)
    torch.testing.assert_close(features[:, :, ::4, ::4], expected, rtol=1e-10, atol=1e-10)


def test_torchvisions_own_dilated_network_is_ours_pixel_by_pixel():
    arch, model = "resnet50", with_statistics("resnet50", "torchvision")  # it dilates no basic blocks
    images = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        expected = strided_resnet(model.state_dict(), arch, "torchvision", images, dilated=True)
        torch.testing.assert_close(model(images)[0], expected, rtol=1e-10, atol=1e-10)


def test_the_styles_differ_in_values_and_not_in_names():
    caffe, torchvision = with_statistics("resnet50", "caffe"), deeplab_v2("resnet50", 3, (6,), "train", "torchvision")
    torchvision.double().eval().load_state_dict(caffe.state_dict())
    images = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = (model(images)[0] for model in (caffe, torchvision))
    assert (ours - theirs).norm() > 0.1 * ours.norm()
