"""Heads of the AdaptSegNet family: ours predict what their own networks do, or it is asked how they are meant."""

import logging
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from weight_files import numbered, saved

from simfast.models import deeplab_v2, load_weights, restore_model
from simfast.models.heads import is_trained

DILATIONS = (6, 12, 18, 24)


def summed(state, part, features, live):
    """A head of the family with so many live branches: AdaptSegNet's returns inside its loop, after the second."""
    logits = 0
    for i, dilation in enumerate(DILATIONS[:live]):
        names = [f"{part}.conv2d_list.{i}.{kind}" for kind in ("weight", "bias")]
        logits = logits + F.conv2d(features, *(state[name] for name in names), padding=dilation, dilation=dilation)
    return logits


@cache
def backbone():
    torch.manual_seed(0)
    state = deeplab_v2("resnet18", 19, head_dilations=(6,)).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("layer6")}


def trained_head(part, live, steps=40, seed=0):
    """A head of four branches after some steps of SGD as the family trains, of which so many are in the sum."""
    return {f"{part}.conv2d_list.{name}": tensor for name, tensor in _trained(live, steps, seed).items()}


@cache
def _trained(live, steps, seed, channels=512):
    torch.manual_seed(seed)
    branches = nn.ModuleList(nn.Conv2d(channels, 19, 3, padding=d, dilation=d) for d in DILATIONS)
    for branch in branches:
        nn.init.normal_(branch.weight, 0, 0.01)
    optimizer = torch.optim.SGD(branches.parameters(), lr=2.5e-3, momentum=0.9, weight_decay=5e-4)
    means = torch.rand(19, channels) * (torch.rand(19, channels) < 0.2)
    for _ in range(steps):
        labels = torch.randint(19, (1, 5, 9)).repeat_interleave(4, 1).repeat_interleave(4, 2)
        features = (2 * means[labels].permute(0, 3, 1, 2) + 0.3 * torch.randn(1, channels, *labels.shape[1:])).relu()
        loss = F.cross_entropy(sum(branch(features) for branch in branches[:live]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in branches.named_parameters()}


def auxiliary():
    return {
        f"layer5.conv2d_list.{i}.{kind}": torch.randn(19, *shape)
        for i in range(4)
        for kind, shape in (("weight", (256, 3, 3)), ("bias", ()))
    }


FAMILY = {
    "AdaptSegNet and SIM": (2, ("layer6",), lambda: trained_head("layer6", 2) | auxiliary()),
    "AdaptSegNet of one level and DACS": (2, ("layer5",), lambda: trained_head("layer5", 2)),
    "ADVENT": (4, ("layer6",), lambda: trained_head("layer6", 4) | auxiliary()),
    "BDL and FDA": (4, ("layer5",), lambda: trained_head("layer5", 4)),
    "CLAN": (4, ("layer5", "layer6"), lambda: trained_head("layer5", 4) | trained_head("layer6", 4, seed=1)),
}


@pytest.mark.parametrize("name", FAMILY)
def test_a_file_of_the_family_predicts_what_its_own_network_does(tmp_path, caplog, name):
    live, parts, head = FAMILY[name]
    state = backbone() | head()
    with caplog.at_level(logging.INFO):
        restored = restore_model(saved(tmp_path, state))
    assert restored.model.head_dilations == DILATIONS[:live]
    images = torch.randn(1, 3, 97, 129)
    with torch.no_grad():
        features, logits = restored.model(images)
        expected = sum(summed(state, part, features, live) for part in parts)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, expected) or len(parts) > 1
    evidence = "2 of its 4 branches are trained" if live == 2 else "all 4 of its branches are trained"
    assert f"head {' + '.join(parts)} with dilations {' '.join(map(str, DILATIONS[:live]))} ({evidence}" in caplog.text
    report = restored.weights
    assert (report.used, report.in_file) == (100 + 2 * live * len(parts), 100 + len(head()))
    assert report.matched == report.total == 100 + 2 * live
    assert f"{report.used} of the file's {report.in_file} tensors used" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_trained_head_of_other_live_branches_than_the_models_is_refused(tmp_path, caplog):
    path = saved(tmp_path, backbone() | trained_head("layer6", 2))
    model = deeplab_v2("resnet18", 19)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"must have head_dilations \(6, 12\).*2 of its 4 .*got \(6, 12, 18, 24\)"):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert load_weights(model, path, head_dilations=DILATIONS).used == 108  # what was said counts, and is warned of
    assert "head_dilations 6 12 18 24 was said for" in caplog.text
    assert "2 of its 4 branches are trained" in caplog.text


UNCLEAR = {
    "nothing trained": lambda: trained_head("layer6", 2, steps=0),
    "hardly trained": lambda: trained_head("layer6", 2, steps=3),
    "independent values of another width": lambda: {
        name: 2 * tensor for name, tensor in trained_head("layer6", 2, steps=0).items()
    },
    "unused branches that lost weight": lambda: {
        name: tensor * (1 if name[19] in "01" else 0.97) for name, tensor in trained_head("layer6", 2).items()
    },
    "a trained branch behind one that is not": lambda: {
        name.replace("list.3", "list.x").replace("list.0", "list.3").replace("list.x", "list.0"): tensor
        for name, tensor in trained_head("layer6", 2).items()
    },
    "one value": lambda: {name: torch.full_like(tensor, 0.01) for name, tensor in trained_head("layer6", 2).items()},
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_where_it_is_not_beyond_doubt_the_dilations_have_to_be_said(tmp_path, case):
    path = saved(tmp_path, backbone() | UNCLEAR[case]())
    said = r"head_dilations: must be given \(--head-dilations\) .*weights\.pth, whose head layer6 has 4 branches, .* "
    said += r"6 12 \(AdaptSegNet, SIM\) or 6 12 18 24 \(ADVENT\), got none"
    with pytest.raises(ValueError, match=said):
        restore_model(path)
    for dilations in ((6, 12), DILATIONS):
        restored = restore_model(path, head_dilations=dilations)
        assert restored.model.head_dilations == dilations
        assert restored.weights.used == 100 + 2 * len(dilations)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("channels", [512, 2048])
def test_initial_values_are_never_taken_for_trained_ones(channels, seed):
    torch.manual_seed(seed)
    branch = nn.Conv2d(channels, 19, 3)
    nn.init.normal_(branch.weight, 0, 0.01)
    assert is_trained(branch.weight.detach(), branch.bias.detach()) is False
    assert is_trained(branch.weight.detach().half(), branch.bias.detach()) is False
    for scale in (0.9, 1.1):
        assert is_trained(scale * branch.weight.detach(), branch.bias.detach()) is None


def uneven(dimensions, by):
    """Factors about 1 that differ along some dimensions of a branch's weights."""
    shape = [size if i in dimensions else 1 for i, size in enumerate((19, 512, 3, 3))]
    return 1 + by * (2 * torch.rand(shape) - 1)


VALUES = {
    "as they began": (lambda w: w, 0, False),
    "biases as none begins": (lambda w: w, 0.02, None),
    "another mean": (lambda w: w + 0.001, 0, None),
    "evenly distributed": (lambda w: 2 * torch.rand_like(w) - 1, 0, None),
    "kernels that moved": (lambda w: w + 0.005 * torch.randn(19, 512, 1, 1), 0, True),
    "kernels that hardly moved": (lambda w: w + 0.0025 * torch.randn(19, 512, 1, 1), 0, None),
    "taps that moved unlike": (lambda w: w * uneven((2, 3), 0.3), 0, True),
    "channels that moved unlike": (lambda w: w * uneven((1,), 0.4), 0, True),
    "classes that moved unlike": (lambda w: w + 0.0025 * torch.randn(19, 1, 1, 1), 0, True),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_branch_is_as_it_began_or_trained_by_every_sign_of_it_or_in_doubt(case):
    values, bias, expected = VALUES[case]
    torch.manual_seed(0)
    weight = values(0.01 * torch.randn(19, 512, 3, 3))
    if case != "another mean":
        weight = 0.01 * weight / weight.std()
    assert is_trained(weight, torch.full((19,), float(bias))) is expected


def test_clans_heads_may_have_any_values(tmp_path):
    state = backbone() | trained_head("layer5", 4, steps=3) | trained_head("layer6", 4, steps=6)
    heads = {name: tensor * 3 for name, tensor in state.items() if "conv2d_list" in name}  # as no head begins
    assert restore_model(saved(tmp_path, state | heads)).model.head_dilations == DILATIONS
    dead = backbone() | trained_head("layer5", 4) | trained_head("layer6", 2)
    with pytest.raises(ValueError, match="whose head layer5 and layer6 has 4 branches"):
        restore_model(saved(tmp_path, dead))


def test_the_dilations_of_any_other_number_of_branches_have_to_be_said(tmp_path):
    three = {name: tensor for name, tensor in trained_head("layer6", 4).items() if "list.3" not in name}
    path = saved(tmp_path, numbered("resnet18") | three)
    with pytest.raises(ValueError, match="has 3 branches, of which the file does not tell the dilations"):
        restore_model(path)
    assert restore_model(path, head_dilations=(1, 2, 3)).model.head_dilations == (1, 2, 3)
