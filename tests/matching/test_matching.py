"""Matching against a second implementation, written as loops over images, classes, masks and rows, from the paper."""

import copy

import pytest
import torch
import torch.nn.functional as F
from skimage.measure import label as sk_label
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simfast.matching import StuffInstanceMatching, correct_labels, predicted_labels
from simfast.matching.bank import RingBank
from simfast.models.checkpoint import require_like
from simfast.training.losses import adversarial_loss

OPS = ["reference", "fused"]
STUFF, THINGS = [0, 3], [1, 4, 2]
WIDTH, ROWS, INSTANCES = 6, 3, 2


class PaperLoop:
    """Eq. 5-8 and Algorithm 1, one mask at a time; banks as Python lists."""

    def __init__(self, gated: bool, only_full: bool, head):
        self.gated, self.only_full, self.head = gated, only_full, head
        self.bank = {c: [None] * ROWS for c in STUFF} | {k: [None] * (ROWS * INSTANCES) for k in THINGS}
        self.counter = dict.fromkeys(STUFF + THINGS, 0)

    def regions(self, feature, label):
        """(class, mean feature, regions of the class) of one image."""
        for b in STUFF:
            if (label == b).any():
                yield b, feature[:, label == b].mean(1), 1
        for k in THINGS:
            parts = torch.from_numpy(sk_label((label == k).numpy(), connectivity=2))
            masks = sorted((parts == i for i in range(1, int(parts.max()) + 1)), key=lambda m: -int(m.sum()))
            for mask in masks[:INSTANCES]:
                yield k, feature[:, mask].mean(1), min(len(masks), INSTANCES)

    def accepts(self, c, vector):
        return not self.gated or int(self.head(vector[None]).argmax()) == c

    def remember(self, features, labels):
        for feature, label in zip(features.detach(), labels, strict=True):
            for c, vector, _ in self.regions(feature, label):
                if self.accepts(c, vector):
                    self.bank[c][self.counter[c] % len(self.bank[c])] = vector
                    self.counter[c] += 1

    def losses(self, features, labels):
        stuff = instances = features.sum() * 0
        for feature, label in zip(features, labels, strict=True):
            for c, vector, regions in self.regions(feature, label):
                rows = [row for row in self.bank[c] if row is not None]
                if not rows or (self.only_full and self.counter[c] <= len(self.bank[c])):
                    continue
                distance = torch.stack([(vector - row).abs().sum() for row in rows]).min() / WIDTH
                if c in THINGS:
                    instances = instances + distance / regions / len(features)
                elif self.accepts(c, vector.detach()):
                    stuff = stuff + distance / len(features)
        return stuff, instances


def random_step(images, generator):
    features = torch.randn(images, WIDTH, 7, 9, generator=generator)
    labels = torch.randint(0, 6, (images, 7, 9), generator=generator)
    labels[labels == 5] = 255
    return features, labels


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("fill_rule", ["any", "full"])
@pytest.mark.parametrize("gate", ["none", "released"])
@pytest.mark.parametrize("images", [1, 3])
def test_matching_equals_the_paper_written_as_loops_over_wrapping_rings(images, gate, fill_rule, ops):
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, 5)
    nn.init.normal_(head.weight, generator=generator)
    matching = StuffInstanceMatching(WIDTH, STUFF, THINGS, ROWS, INSTANCES, gate, fill_rule, ops)
    paper = PaperLoop(gate == "released", fill_rule == "full", head)
    seen = 0.0
    for _ in range(30):  # 30 to 90 candidates for each stuff ring of 3, twice that for each instance ring of 6
        source, source_labels = random_step(images, generator)
        matching.remember(source, source_labels, head)
        paper.remember(source, source_labels)

        target, target_labels = random_step(images, generator)
        ours, theirs = target.clone().requires_grad_(), target.clone().requires_grad_()
        losses = matching(ours, target_labels, head)
        expected = paper.losses(theirs, target_labels)
        torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-5, atol=1e-6)
        sum(losses).backward()
        sum(expected).backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
        seen += sum(losses).item()
    assert matching.bank.written.tolist() == [paper.counter[k] for k in STUFF + THINGS]
    assert seen > 0


@pytest.mark.parametrize("ops", OPS)
def test_loss_gradient_by_gradcheck(ops):
    generator = torch.Generator().manual_seed(1)
    matching = StuffInstanceMatching(WIDTH, STUFF, THINGS, ROWS, INSTANCES, ops=ops).double()
    matching.remember(*random_step(2, generator))
    features, labels = random_step(2, generator)
    features = features.double()[:, :, :3, :4].requires_grad_()
    labels = labels[:, :3, :4]
    assert torch.autograd.gradcheck(lambda f: matching(f, labels), features)


@pytest.mark.parametrize("ops", OPS)
def test_nothing_remembered_and_nothing_present_give_zero_with_zero_gradient(ops):
    matching = StuffInstanceMatching(WIDTH, STUFF, THINGS, ops=ops)
    features = torch.randn(1, WIDTH, 4, 4, requires_grad=True)
    for labels in (torch.zeros(1, 4, 4, dtype=torch.int64), torch.full((1, 4, 4), 255)):
        losses = matching(features, labels)
        assert [loss.item() for loss in losses] == [0, 0]
        sum(losses).backward()
    assert not features.grad.any()


@pytest.mark.parametrize("ops", OPS)
def test_banks_travel_with_the_module(ops):
    generator = torch.Generator().manual_seed(2)
    first = StuffInstanceMatching(WIDTH, STUFF, THINGS, ROWS, INSTANCES, ops=ops)
    first.remember(*random_step(2, generator))
    second = StuffInstanceMatching(WIDTH, STUFF, THINGS, ROWS, INSTANCES, ops=ops)
    second.load_state_dict(first.state_dict())
    features, labels = random_step(1, generator)
    assert torch.equal(torch.stack(first(features, labels)), torch.stack(second(features, labels)))
    assert torch.equal(torch.stack(first(features, labels)), torch.stack(copy.deepcopy(first)(features, labels)))


@pytest.mark.parametrize(("stuff", "things"), [([5, 6], [7, 8]), ([1, 0], [2, 3]), ([0], [1, 2, 3]), ([0, 1], [3, 2])])
def test_banks_of_other_classes_are_refused_and_change_nothing(stuff, things):
    first = StuffInstanceMatching(WIDTH, [0, 1], [2, 3], 2, 1)
    first.remember(torch.ones(1, WIDTH, 2, 2), torch.tensor([[[0, 1], [2, 3]]]))
    other = StuffInstanceMatching(WIDTH, stuff, things, 2, 1)
    with pytest.raises(ValueError, match=r": (stuff|things) of a state to load must be this module's \[.*, got \["):
        other.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"matching\.(stuff|things) of"):
        torch.nn.ModuleDict({"matching": other}).load_state_dict(torch.nn.ModuleDict({"matching": first}).state_dict())
    assert not other.bank.written.any()


def test_banks_from_before_they_named_their_classes_still_load(tmp_path):
    first = StuffInstanceMatching(WIDTH, [0, 1], [2, 3], 2, 1)
    first.remember(torch.ones(1, WIDTH, 2, 2), torch.tensor([[[0, 1], [2, 3]]]))
    state = {name: x for name, x in first.state_dict().items() if name != "_extra_state"}
    assert sorted(state) == ["bank.storage", "bank.written"]
    torch.save(state, tmp_path / "old.pt")
    second = StuffInstanceMatching(WIDTH, [0, 1], [2, 3], 2, 1)
    require_like(state, second.state_dict(), "old.pt")  # what a resumed run asks first
    second.load_state_dict(torch.load(tmp_path / "old.pt", weights_only=True))
    assert torch.equal(second.bank.storage, first.bank.storage)


@pytest.mark.parametrize("labels", [correct_labels, predicted_labels])
def test_one_label_map_is_not_that_of_two_images(labels):
    logits = torch.randn(2, 5, 4, 4)
    with pytest.raises(ValueError, match=r"labels must be \[2, H, W\], one for each image, got \[1, 4, 4\]"):
        labels(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))


def test_a_write_of_more_vectors_than_slots_keeps_the_last_ones():
    bank = RingBank([3, 2, 2], 1)
    bank.write(torch.arange(8.0)[:, None], torch.tensor([0, 0, -1, 0, 1, 0, 0, -1]))
    assert bank.rows(0, 1).flatten().tolist() == [5, 6, 3]  # vector n of a class sits in slot n mod 3
    assert bank.rows(1, 3).tolist() == [[[4], [0]], [[0], [0]]]
    assert bank.filled().tolist() == [3, 1, 0]
    assert bank.filled(only_full=True).tolist() == [3, 0, 0]
    assert bank.written.tolist() == [5, 1, 0]


class Destinations(TorchDispatchMode):
    """Notes the rows that index_copy_ writes to."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index_copy_.default:
            self.rows = args[2].tolist()
        return func(*args, **(kwargs or {}))


def test_no_row_is_written_twice_in_one_call():
    # On a GPU the winner of two writes to one row would not be the same in every run; a CPU cannot show that.
    bank = RingBank([3, 2], 1)
    with Destinations() as seen:
        bank.write(torch.arange(8.0)[:, None], torch.tensor([0, 0, -1, 0, 1, 0, 0, -1]))
    spare = len(bank.storage) - 1
    written = [row for row in seen.rows if row != spare]
    assert sorted(written) == [0, 1, 2, 3]


def test_correct_labels_are_the_agreement_of_prediction_and_shrunken_truth():
    logits = F.one_hot(torch.tensor([[[0, 1, 2]]]), 3).permute(0, 3, 1, 2).float()
    truth = torch.tensor([[[0, 9, 2, 9, 2, 9]] * 2], dtype=torch.uint8)  # nearest keeps every second pixel
    assert correct_labels(logits, truth).tolist() == [[[0, 255, 2]]]


def test_pseudo_labels_replace_the_prediction_where_they_exist():
    logits = F.one_hot(torch.tensor([[[0, 1, 2]]]), 3).permute(0, 3, 1, 2).float()
    assert predicted_labels(logits).tolist() == [[[0, 1, 2]]]
    for dtype in (torch.uint8, torch.int64):
        labels = predicted_labels(logits, torch.tensor([[[255, 1, 0]]], dtype=dtype))
        assert labels.tolist() == [[[0, 1, 0]]]
        assert labels.dtype == torch.int64
        # A mark that the dtype cannot hold marks nothing.
        labels = predicted_labels(logits, torch.tensor([[[255, 1, 0]]], dtype=dtype), ignore=-1)
        assert labels.tolist() == [[[255, 1, 0]]]


def test_adversarial_loss_is_eq_2_and_eq_3():
    judgement = torch.tensor([0.3, -2.0])
    target_probability = torch.sigmoid(judgement)  # D answers "how likely target"
    torch.testing.assert_close(adversarial_loss(judgement, "source"), -(1 - target_probability).log().mean())
    torch.testing.assert_close(adversarial_loss(judgement, "target"), -target_probability.log().mean())


def test_bad_input_is_named():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    matching = StuffInstanceMatching(4, STUFF, THINGS, gate="released")
    cases = [
        ("gate must be one of .* got 'maybe'", lambda: StuffInstanceMatching(4, STUFF, THINGS, gate="maybe")),
        ("distinct class ids", lambda: StuffInstanceMatching(4, [0], [0])),
        ("at least 1, got 4, 0, 10", lambda: StuffInstanceMatching(4, STUFF, THINGS, stuff_rows=0)),
        ("ops must be", lambda: StuffInstanceMatching(4, STUFF, THINGS, ops="fast")),
        (r"features must be \[B, 4, h, w\]", lambda: matching(torch.zeros(1, 5, 2, 2), labels, nn.Identity())),
        ("classify must be given", lambda: matching(torch.zeros(1, 4, 2, 2), labels)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
