"""segment_mean and its backward on a ResNet-101's last map against what PyTorch offers for it."""

import pytest
import torch
from torch import Tensor

from bench.timing import Contender, compare
from simfast import ops, reference
from simfast.testing import DEVICES, STUFF, THINGS, assert_means_close, feature_maps, smooth_labels

CHANNELS, HEIGHT, WIDTH = 2048, 91, 161
CASES = [
    pytest.param(torch.bfloat16, torch.channels_last, id="bf16-channels-last"),
    pytest.param(torch.bfloat16, torch.contiguous_format, id="bf16-contiguous"),
    pytest.param(torch.float32, torch.contiguous_format, id="f32-contiguous"),
]


def inputs(dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> tuple[Tensor, Tensor, int]:
    labels = smooth_labels(1, HEIGHT, WIDTH, scale=8, ignore=0.1)
    segments, areas = reference.find_regions(labels, STUFF, THINGS)
    features = feature_maps(1, CHANNELS, HEIGHT, WIDTH, dtype).contiguous(memory_format=memory_format)
    return features.to(device), segments.to(device), areas.shape[1]


def index_of(segments: Tensor, num_segments: int) -> Tensor:
    """Flat segment of every pixel, num_segments where there is none. int64 [H * W]."""
    return torch.where(segments >= 0, segments, num_segments).flatten().long()


def one_hot_product(features: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sums in the matrix unit; rounds a bf16 result to bf16."""
    one_hot = (index[None] == torch.arange(num_segments, device=index.device)[:, None]).to(features.dtype)
    sums = one_hot @ features[0].flatten(1).t()
    return sums.float() / one_hot.float().sum(1).clamp(min=1)[:, None]


def index_add(features: Tensor, index: Tensor, num_segments: int) -> Tensor:
    rows = features[0].flatten(1).t().float()
    sums = rows.new_zeros(num_segments + 1, CHANNELS).index_add_(0, index, rows)[:-1]
    return sums / torch.bincount(index, minlength=num_segments + 1)[:-1].clamp(min=1)[:, None]


def scatter(features: Tensor, index: Tensor, num_segments: int) -> Tensor:
    planes = features[0].flatten(1).float()
    sums = planes.new_zeros(CHANNELS, num_segments + 1).scatter_add_(1, index.expand(CHANNELS, -1), planes)
    return sums.t()[:-1] / torch.bincount(index, minlength=num_segments + 1)[:-1].clamp(min=1)[:, None]


def ours(device: str, run, check) -> list[Contender]:
    if device == "cuda":
        return [Contender("simfast", run, check)]
    return [
        Contender("simfast, 1 thread", run, check, threads=1),
        Contender("simfast, 2 threads", run, check, threads=2),
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "memory_format"), CASES)
def bench_forward(benchmark, dtype, memory_format, device):
    features, segments, num_segments = inputs(dtype, memory_format, device)
    index = index_of(segments, num_segments)
    exact = reference.segment_mean(features.double(), segments, num_segments)

    def check(means: Tensor) -> None:
        assert_means_close(means.view(exact.shape), exact)

    def check_loosely(means: Tensor) -> None:
        """For peers: right, but as coarse as their dtype."""
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(means.double(), exact[0], rtol=4 * rounding, atol=4 * rounding)

    contenders = ours(device, lambda: ops.segment_mean(features, segments, num_segments), check)
    for peer in (one_hot_product, index_add, scatter):
        name = peer.__name__.replace("_", " ")
        contenders.append(Contender(name, lambda f=peer: f(features, index, num_segments), check_loosely))
    bytes_moved = features.numel() * features.element_size() + segments.numel() * 4 + exact.numel() * 4
    compare(benchmark, contenders, device, bytes_moved, rounds=11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "memory_format"), CASES)
def bench_backward(benchmark, dtype, memory_format, device):
    features, segments, num_segments = inputs(dtype, memory_format, device)
    index = index_of(segments, num_segments)
    features.requires_grad_()
    means = ops.segment_mean(features, segments, num_segments)
    grad_means = torch.randn(means.shape, generator=torch.Generator().manual_seed(0)).to(device)
    counts = torch.bincount(index, minlength=num_segments + 1)[:-1]
    quotients = torch.cat([grad_means[0] / counts.clamp(min=1)[:, None], grad_means.new_zeros(1, CHANNELS)]).to(dtype)
    expected = quotients[index].t().view(features.shape)

    def check(grad: Tensor) -> None:
        assert torch.equal(grad, expected)

    def run():
        return torch.autograd.grad(means, features, grad_means, retain_graph=True)[0]

    def gather():
        """The honest least: quotients, then one indexed read per pixel, in the layout that indexing gives."""
        q = torch.cat([grad_means[0] / counts.clamp(min=1)[:, None], grad_means.new_zeros(1, CHANNELS)]).to(dtype)
        return q[index].t().view(features.shape)

    def one_hot():
        q = (grad_means[0] / counts.clamp(min=1)[:, None]).to(dtype)
        one_hot = (index[None] == torch.arange(num_segments, device=index.device)[:, None]).to(dtype)
        return (q.t() @ one_hot).view(features.shape)

    contenders = ours(device, run, check)
    contenders += [Contender("gather", gather, check), Contender("one hot product", one_hot, check)]
    compare(benchmark, contenders, device, features.numel() * features.element_size() + means.numel() * 4, rounds=11)
