"""The optimiser of the segmentation network, against torch's with parameters that stand in a group several times."""

import copy
import dataclasses
import warnings
from itertools import chain

import pytest
import torch
from torch import nn

from simfast.config import Config
from simfast.models import deeplab_v2
from simfast.training.optimizers import ListedSGD, settle, sgd

CONFIG = dataclasses.replace(Config(), lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=False)


def listed_by_the_released_rule(model):
    """Every parameter of every module of each part: once for each module around it."""
    parts = (model.conv1, model.bn1, model.layer1, model.layer2, model.layer3, model.layer4)
    modules = chain.from_iterable(part.modules() for part in parts)
    return [p for module in modules for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101"])
def test_the_backbone_is_listed_as_the_released_optimiser_lists_it(arch):
    with torch.device("meta"):
        model = deeplab_v2(arch, 19)
    counts = {}
    for p in listed_by_the_released_rule(model):
        counts[p] = counts.get(p, 0) + 1
    assert model.listings() == counts
    assert set(counts.values()) == {1, 3, 4}


@pytest.mark.parametrize("nesterov", [False, True])
def test_listed_updates_are_those_of_torch_with_the_list_itself(nesterov):
    torch.manual_seed(0)
    ours = deeplab_v2("resnet18", 3)
    theirs = copy.deepcopy(ours)
    config = dataclasses.replace(CONFIG, nesterov=nesterov, backbone_updates="listed")
    optimizer = sgd(config, ours)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 1.0])
    settle(optimizer, [torch.tensor(rate) for rate in rates])
    groups = [{"params": listed_by_the_released_rule(theirs)}, {"params": list(theirs.head.parameters()), "lr": 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that stand there twice, which is the point
        expected = torch.optim.SGD(groups, 0.1, 0.9, weight_decay=0.05, nesterov=nesterov, foreach=False)
    for p in theirs.parameters():  # else each listing begins the first step, it alone, with a momentum of its own
        expected.state[p]["momentum_buffer"] = torch.zeros_like(p)
    for _ in range(3):
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            if own.requires_grad:
                own.grad = torch.randn_like(own)
                other.grad = own.grad.clone()
        optimizer.step()
        expected.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-4, atol=1e-5)


def test_listed_updates_of_scaled_gradients_divide_them_once():
    """What a GradScaler sets on an optimiser that it steps."""
    plain, scaled = (
        ListedSGD([{"params": [nn.Parameter(torch.ones(3))], "updates": 3}], 0.1, fused=True) for _ in "ab"
    )
    for optimizer, scale in ((plain, 1.0), (scaled, 4.0)):
        optimizer.param_groups[0]["params"][0].grad = torch.full((3,), 2.0 * scale)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # as the scaler does, which fails where they are gone
    assert torch.equal(scaled.param_groups[0]["params"][0], plain.param_groups[0]["params"][0])
    assert plain.param_groups[0]["params"][0].tolist() == pytest.approx([0.4] * 3)


def test_once_is_torch_as_it_was():
    with torch.device("meta"):
        optimizer = sgd(CONFIG, deeplab_v2("resnet18", 3))
    assert type(optimizer) is torch.optim.SGD
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head"]
    assert not any("updates" in group for group in optimizer.param_groups)
