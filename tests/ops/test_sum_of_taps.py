"""sum_of_taps: what torch's dilated convolutions give, with their gradients, on every device."""

import inspect
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from simfast import ops, reference
from simfast.ops.sum_of_taps import offsets
from simfast.testing import DEVICES, assert_within_budget

CASES = {
    "paper's dilations": ((2, 13, 17), 19, [6, 12, 18, 24], 5),
    "smaller than the dilation": ((1, 5, 3), 4, [6, 2], 0),
    "a pixel": ((1, 1, 1), 3, [1], 1),
    "a row": ((2, 1, 9), 1, [2], 0),
}


def problem(size, num_classes, dilations, more, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(0)
    products = torch.randn(*size, (1 + 8 * len(dilations)) * num_classes + more, generator=g).to(device, dtype)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return products, torch.randn(num_classes, generator=g).to(device, kind), dilations


def test_a_twin_of_the_same_signature():
    assert inspect.signature(ops.sum_of_taps) == inspect.signature(reference.sum_of_taps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_sums_and_gradients_are_the_references(case, dtype, device):
    products, bias, dilations = problem(*CASES[case], dtype, device)
    products.requires_grad_()
    bias.requires_grad_()
    out = ops.sum_of_taps(products, bias, dilations)
    exact = reference.sum_of_taps(products.double(), bias.double(), dilations)
    assert out.dtype == dtype
    honest = reference.sum_of_taps(products, bias, dilations)
    assert_within_budget(out.detach(), exact.detach(), honest.detach())
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    ours = torch.autograd.grad(out, (products, bias), grad)
    theirs = torch.autograd.grad(honest, (products, bias), grad)
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_products_of_one_hot_pixels_are_torchs_convolutions(device):
    g = torch.Generator().manual_seed(0)
    features = torch.randint(-3, 4, (2, 5, 9, 11), generator=g).float().to(device)
    weights = torch.randint(-3, 4, (3, 4, 5, 3, 3), generator=g).float().to(device)
    dilations = [1, 4, 10]
    taps = [weights[:, :, :, 1, 1].sum(0)]
    for weight in weights:
        taps += [weight[:, :, y, x] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    products = features.permute(0, 2, 3, 1) @ torch.cat(taps).T
    convolved = sum(F.conv2d(features, w, padding=d, dilation=d) for w, d in zip(weights, dilations, strict=True))
    assert torch.equal(ops.sum_of_taps(products, torch.zeros(4, device=device), dilations), convolved)


@pytest.mark.parametrize("device", DEVICES)
def test_torch_knows_all_it_asks_of_an_operator(device):
    for case in CASES.values():
        products, bias, dilations = problem(*case, device=device)
        sample = products.requires_grad_(), bias.requires_grad_(), dilations
        torch.library.opcheck(torch.ops.simfast.sum_of_taps.default, sample)
        grad = torch.randn(ops.sum_of_taps(*sample).shape, device=device, requires_grad=True)
        torch.library.opcheck(torch.ops.simfast.sum_of_taps_backward.default, (grad, dilations, products.shape[3]))


def test_gradients_are_derivatives_the_second_too():
    products, bias, dilations = problem((2, 4, 3), 2, [1, 3], 1, torch.float64)

    def function(products, bias):
        return ops.sum_of_taps(products, bias, dilations).square()

    inputs = products.requires_grad_(), bias.requires_grad_()
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_whole_it_gives_the_same(device):
    products, bias, dilations = problem(*CASES["paper's dilations"], device=device)
    compiled = torch.compile(ops.sum_of_taps, fullgraph=True)
    assert torch.equal(compiled(products, bias, dilations), ops.sum_of_taps(products, bias, dilations))


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_in_every_run(device):
    arguments = problem(*CASES["paper's dilations"], torch.bfloat16, device)
    assert all(torch.equal(a, b) for a, b in pairwise(ops.sum_of_taps(*arguments) for _ in range(3)))


def test_taps_are_read_row_by_row():
    around = [(-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2)]
    assert offsets([2]) == [(0, 0), *around]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"products": None}, TypeError, "products must be a tensor, got NoneType"),
        ({"products": torch.zeros(2, 3, 9)}, ValueError, r"products must be .* got float32 \[2, 3, 9\]"),
        ({"products": torch.zeros(1, 2, 3, 18).int()}, ValueError, r"products must be .* got int32"),
        (
            {"products": torch.zeros(1, 2, 3, 17)},
            ValueError,
            r".* with N at least 18 for 2 classes and 1 dilations, got",
        ),
        ({"bias": torch.zeros(2).half()}, ValueError, r"bias must be float32 \[K\], got float16 \[2\]"),
        ({"bias": torch.zeros(0)}, ValueError, r"bias must be float32 \[K\], got float32 \[0\]"),
        ({"bias": torch.zeros(2, device="meta")}, ValueError, "bias must be on products' device cpu, got meta"),
        ({"dilations": []}, ValueError, r"dilations must be one or more integers from 1 to 2\^30, got \[\]"),
        ({"dilations": [0]}, ValueError, r"dilations must be .*, got \[0\]"),
        ({"dilations": [1.5]}, ValueError, r"dilations must be .*, got \[1.5\]"),
    ],
)
def test_a_wrong_argument_is_named(change, error, said):
    good = {"products": torch.zeros(1, 2, 3, 18), "bias": torch.zeros(2), "dilations": [1]}
    with pytest.raises(error, match=f"^sum_of_taps: {said}"):
        ops.sum_of_taps(**good | change)
