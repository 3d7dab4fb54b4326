"""Which network a run has: what its weights, its settings and the checkpoint that it goes on from say together."""

import pytest
import torch

from simfast.config import Config
from simfast.models import deeplab_v2
from simfast.training.build import build_trainer

CPU = torch.device("cpu")


@pytest.fixture
def torchvision(tmp_path):
    model = deeplab_v2("resnet18", 19)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("layer6")}
    torch.save(state | {"fc.bias": torch.zeros(1000)}, tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def settings(**given):
    return Config(arch="resnet18", method="source-only", precision="fp32", **given)


def test_a_torchvision_file_gets_its_network_and_a_resumed_run_keeps_it(torchvision):
    config = settings(weights=torchvision)
    trainer = build_trainer(config, CPU, None)
    assert trainer.model.settings["resnet_style"] == "torchvision"
    assert trainer.model.head_dilations == (6, 12, 18, 24)
    state = trainer.state_dict() | {"network": trainer.model.settings}
    torchvision.unlink()  # a resumed run does not read it
    assert build_trainer(config, CPU, state).model.settings == trainer.model.settings
    del state["network"]  # before there were two styles, all were caffe's
    assert build_trainer(config, CPU, state).model.resnet_style == "caffe"


def test_what_is_said_of_the_network_counts(torchvision):
    said = settings(weights=torchvision, resnet_style="caffe", head_dilations=(1, 2))
    model = build_trainer(said, CPU, None).model
    assert (model.resnet_style, model.head_dilations) == ("caffe", (1, 2))
    assert build_trainer(settings(), CPU, None).model.settings == deeplab_v2("resnet18", 19).settings


def test_a_run_starts_with_the_head_that_its_weights_bring_or_asks(tmp_path):
    torch.manual_seed(0)
    torch.save(deeplab_v2("resnet18", 19).state_dict(), tmp_path / "initial.pth")
    with pytest.raises(ValueError, match=r"head_dilations: must be given \(--head-dilations\)"):
        build_trainer(settings(weights=tmp_path / "initial.pth"), CPU, None)
    ours = deeplab_v2("resnet18", 19, (2, 4))
    content = {"format": "simfast", "model": ours.state_dict(), "convention": "rgb"}
    content |= {"config": settings().to_dict(), "network": ours.settings}
    torch.save(content, tmp_path / "ours.pt")
    model = build_trainer(settings(weights=tmp_path / "ours.pt"), CPU, None).model
    assert model.head_dilations == (2, 4)
    assert torch.equal(model.head.conv2d_list[1].weight, ours.head.conv2d_list[1].weight)
    with pytest.raises(ValueError, match=r"head_dilations must be \(2, 4\), which .*ours\.pt records"):
        build_trainer(settings(weights=tmp_path / "ours.pt", head_dilations=(6, 12)), CPU, None)
