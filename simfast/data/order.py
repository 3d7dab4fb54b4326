"""Which item is sample number k of a domain: a pure function of the seed; and data sets mixed by share."""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from simfast.data.cache import CachedDataset
from simfast.data.dataset import SegmentationDataset

Dataset = SegmentationDataset | CachedDataset


class Mixture:
    """Several data sets that are trained on as one domain, each with its share of the samples.

    Of each cycle of sum(shares) samples, data set j has shares[j], in an order of the cycle's own. Each data set goes
    through permutations of its own. A mixture of one gives what the data set gives alone.

    Attributes:
        datasets: of one size; all labelled, or none.
        shares: whole numbers, one a data set.
        size: width and height of what comes out, pixels.
    """

    def __init__(self, datasets: Sequence[Dataset], shares: Sequence[int]):
        """
        Raises:
            ValueError: no data set, another number of shares, a share under 1, images of several sizes.
        """
        self.datasets, self.shares = tuple(datasets), tuple(shares)
        if not self.datasets or len(self.shares) != len(self.datasets):
            raise ValueError(f"shares: must be one for each of {len(self.datasets)} data sets, got {self.shares}")
        if any(type(share) is not int or share < 1 for share in self.shares):
            raise ValueError(f"shares: must be whole numbers from 1 on, got {self.shares}")
        self.size = self.datasets[0].size
        if len(sizes := {tuple(dataset.size) for dataset in self.datasets}) > 1:
            raise ValueError(f"datasets: must have images of one size, got {sorted(sizes)}")

    def __len__(self) -> int:
        """Images of all data sets together."""
        return sum(map(len, self.datasets))

    @cached_property
    def class_ids(self) -> tuple[int, ...]:
        """Classes that can occur in the labels of one of them, ascending."""
        return tuple(sorted({c for dataset in self.datasets for c in dataset.class_ids}))

    @cached_property
    def passed_over(self) -> tuple[str, ...]:
        """Of all data sets; as `SegmentationDataset`'s."""
        return tuple(dict.fromkeys(text for dataset in self.datasets for text in dataset.passed_over))

    @cached_property
    def cycle(self) -> tuple[int, ...]:
        """The number of its data set for each sample of a cycle that is not shuffled yet."""
        return tuple(j for j, share in enumerate(self.shares) for _ in range(share))


GO_ON = "--skip-bad-files N goes on without up to N bad files"
"""What helps where a file to train on is bad, and can be done without."""


def sample(
    data: Dataset | Mixture, seed: int, domain: str, k: int, skip: int = 0, skipped: dict[str, str] | None = None
) -> tuple[Tensor, Tensor, str]:
    """Sample number k of a domain, an item of its data set or of one of the mixture's.

    Args:
        data, seed, domain, k: which.
        skip: so many bad items are passed over: the next good one in the epoch's order stands in for them.
        skipped: takes up these, by their names, and what is wrong with them.

    Raises:
        ValueError: a bad item; with `skip`, one more than that in a row.
    """
    if isinstance(data, Mixture):
        number, place = divmod(k, len(data.cycle))
        order = [data.cycle[i] for i in permutation(len(data.cycle), seed, f"{domain} mixture", number)]
        j = order[place]
        k = number * data.shares[j] + order[:place].count(j)
        data, domain = data.datasets[j], f"{domain} {j}" if j else domain
    epoch, place = divmod(k, len(data))
    order, bad = permutation(len(data), seed, domain, epoch), {}
    for i in (order[(place + n) % len(order)] for n in range(len(order))):
        try:
            item = data[i]
        except (ValueError, OSError) as error:
            bad[f"{domain}: {data.names[i]}"] = str(error)
            if len(bad) > min(skip, len(order) - 1):
                more = f"skip_bad_files: more than {skip} bad files, with {', '.join([*bad][:-1])}" if skip else GO_ON
                raise ValueError(f"{error} ({more})") from None
        else:
            if skipped is not None:
                skipped |= bad
            return item
    raise ValueError(f"{domain}: must have an item, got none")


def draw(*key) -> int:
    """A number in [0, 2**63) that depends on the key alone, and evenly so."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


@lru_cache(maxsize=16)  # of two domains, the data sets mixed in one, the mixture, and the seams between two epochs
def permutation(num: int, seed: int, domain: str, epoch: int) -> tuple[int, ...]:
    """The numbers under `num` in the order of an epoch."""
    generator = torch.Generator().manual_seed(draw(seed, domain, "epoch", epoch))
    return tuple(torch.randperm(num, generator=generator).tolist())
