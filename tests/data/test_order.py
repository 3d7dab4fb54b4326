"""Data sets mixed by share: which items come is a function of the seed and the place alone; one set alone stays as it
was."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simfast.data.loader import DomainLoader
from simfast.data.order import Mixture, sample


class Numbered:
    """Items whose red is the number of the set, and whose green the number of the item."""

    def __init__(self, number, count, class_ids=(0,), size=(4, 3)):
        self.number, self.count, self.class_ids, self.size = number, count, class_ids, size
        self.names = [f"{number}/{i}" for i in range(count)]
        self.passed_over = (f"{number}: hidden",)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = torch.zeros(3, 3, 4, dtype=torch.uint8)
        image[0], image[1], image[2] = self.number, i, torch.arange(4)
        return image, image[2].clone(), self.names[i]


def items(loader, batches):
    """(set, item, mirrored) of each source image."""
    taken = [batch for _, batch in zip(range(batches), loader)]  # noqa: B905  the loader is endless
    images = torch.cat([batch.source_images for batch in taken])
    assert torch.equal(images[:, 2], torch.cat([batch.source_labels for batch in taken]))
    return [(int(image[0, 0, 0]), int(image[1, 0, 0]), bool(image[2, 0, 0])) for image in images]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 9))
def test_each_cycle_has_every_share_and_each_set_comes_through_whole(sets, seed):
    mixture = Mixture([Numbered(j, count) for j, (count, _) in enumerate(sets)], [share for _, share in sets])
    cycle = sum(share for _, share in sets)
    names = [sample(mixture, seed, "source", k)[2] for k in range(6 * cycle)]
    for first in range(0, len(names), cycle):
        assert Counter(int(name[0]) for name in names[first : first + cycle]) == {
            j: share for j, (_, share) in enumerate(sets)
        }
    for j, (count, _) in enumerate(sets):
        own = [name for name in names if name.startswith(f"{j}/")]
        for first in range(0, len(own) - count + 1, count):
            assert sorted(own[first : first + count]) == sorted(mixture.datasets[j].names)


def test_shares_come_in_another_order_every_cycle():
    mixture = Mixture([Numbered(0, 9), Numbered(1, 9)], [3, 1])
    order = [int(sample(mixture, 0, "source", k)[2][0]) for k in range(400)]
    assert len({tuple(order[i : i + 4]) for i in range(0, 400, 4)}) == 4


@pytest.mark.parametrize("share", [1, 3])
def test_a_mixture_of_one_is_the_set_alone(share):
    alone = Numbered(0, 7)
    plain = items(DomainLoader(alone, None, 2, 5, 0, True), 20)
    assert items(DomainLoader(Mixture([alone], [share]), None, 2, 5, 0, True), 20) == plain


def test_two_sets_of_one_length_go_through_orders_of_their_own():
    names = [sample(Mixture([Numbered(0, 8), Numbered(1, 8)], [1, 1]), 3, "source", k)[2] for k in range(160)]
    first, second = ([name[2:] for name in names if name.startswith(f"{j}/")] for j in (0, 1))
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_mixture_and_the_ranks_of_one_give_what_the_straight_one_does(workers):
    mixture = Mixture([Numbered(0, 5), Numbered(1, 3), Numbered(2, 4)], [2, 1, 1])
    straight = items(DomainLoader(mixture, None, 2, 7, 0, True), 20)
    assert items(DomainLoader(mixture, None, 2, 7, workers, True, position=9), 11) == straight[18:]
    ranks = [items(DomainLoader(mixture, None, 1, 7, workers, True, rank=rank, ranks=2), 20) for rank in range(2)]
    assert [item for pair in zip(*ranks, strict=True) for item in pair] == straight


def test_a_mixture_has_what_its_sets_have_together():
    mixture = Mixture([Numbered(0, 5, (0, 3)), Numbered(1, 3, (1, 3))], [1, 2])
    assert (len(mixture), mixture.class_ids, mixture.size) == (8, (0, 1, 3), (4, 3))
    assert mixture.passed_over == ("0: hidden", "1: hidden")


@pytest.mark.parametrize(
    ("sizes", "shares", "message"),
    [
        ([], [], "shares: must be one for each of 0 data sets"),
        ([(4, 3)], [1, 1], r"shares: must be one for each of 1 data sets, got \(1, 1\)"),
        ([(4, 3)], [0], r"shares: must be whole numbers from 1 on, got \(0,\)"),
        ([(4, 3)], [0.5], r"shares: must be whole numbers from 1 on, got \(0.5,\)"),
        ([(4, 3), (3, 4)], [1, 1], r"datasets: must have images of one size, got \[\(3, 4\), \(4, 3\)\]"),
    ],
)
def test_sets_that_do_not_go_together_are_refused(sizes, shares, message):
    with pytest.raises(ValueError, match=message):
        Mixture([Numbered(0, 2, size=size) for size in sizes], shares)
