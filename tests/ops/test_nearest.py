"""nearest_l1: the row a float64 oracle finds, a distance within the error budget, a gradient that is the sign."""

import inspect

import pytest
import torch

from simfast import ops, reference
from simfast.ops.nearest import nearest_l1_ragged
from simfast.testing import DEVICES, assert_same, assert_within_budget, needs_gpu

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.uint8, torch.int16, torch.int32, torch.int64]
NONE = torch.inf, -1


def problem(num_queries, num_classes, max_rows, width, queries=torch.float32, bank=torch.float32, whole=False, seed=0):
    """Features as a last ReLU leaves them, or small whole numbers, whose distances are exact and often tie."""
    g = torch.Generator().manual_seed(seed)
    shapes = (num_queries, width), (num_classes, max_rows, width)
    if whole:
        values = [torch.randint(-2, 3, shape, generator=g).float() for shape in shapes]
    else:
        values = [torch.randn(shape, generator=g).relu() for shape in shapes]
    classes = torch.randint(-1, num_classes, (num_queries,), generator=g)
    filled = torch.randint(0, max_rows + 1, (num_classes,), generator=g)
    return values[0].to(queries), classes, values[1].to(bank), filled


def to(device, *tensors):
    return [x.to(device) for x in tensors]


def check(device, queries, classes, bank, filled):
    """Rows and emptiness exact, distances within the budget, the gradient bit by bit the sign times what came."""
    q, c, b, f = to(device, queries.detach(), classes, bank, filled)
    q.requires_grad_()
    distances, rows = ops.nearest_l1(q, c, b, f)
    exact, nearest = reference.nearest_l1(queries.double(), classes, bank, filled)
    honest, _ = reference.nearest_l1(queries.float(), classes, bank.float(), filled)
    assert distances.dtype == (torch.float64 if queries.dtype == torch.float64 else torch.float32)
    assert_same(rows, nearest, "rows")
    found = nearest >= 0
    assert_same(distances.detach()[rows < 0].cpu(), torch.full(((~found).sum(),), torch.inf, dtype=distances.dtype))
    if found.any():
        assert_within_budget(distances.detach().cpu()[found], exact[found], honest[found])

    scale = torch.randn(len(queries), generator=torch.Generator().manual_seed(1)).to(distances.dtype)
    (grad,) = torch.autograd.grad(distances, q, scale.to(device))
    row = bank[classes.long().clamp(min=0), nearest.clamp(min=0)].double() if bank.numel() else queries.double()
    sign = torch.where(found[:, None], (queries.double() - row).sign(), 0).to(scale.dtype)
    assert_same(grad, (sign * scale[:, None]).to(queries.dtype), "gradient")
    return distances.detach(), rows, grad


@pytest.mark.parametrize("device", DEVICES)
def test_answers_worked_by_hand(device):
    bank = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], [[1.0, 1.0], [9.0, 9.0], [0.0, 0.0]]])
    filled = torch.tensor([3, 1])
    for query, k, distance, row in [
        ((0.0, 0.0), 0, 0.0, 0),
        ((3.0, 3.0), 0, 1.0, 1),  # rows 1 and 2 tie
        ((1.0, 2.5), 0, 3.5, 0),  # all tie
        ((9.0, 9.0), 1, 16.0, 0),  # row 1 would be nearer, and is not filled
        ((9.0, 9.0), -1, *NONE),
    ]:
        arguments = to(device, torch.tensor([query]), torch.tensor([k]), bank, filled)
        distances, rows = ops.nearest_l1(*arguments)
        assert (distances.item(), rows.item()) == (distance, row)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bank", FLOATS, ids=str)
@pytest.mark.parametrize("queries", FLOATS, ids=str)
def test_any_two_dtypes(queries, bank, device):
    check(device, *problem(23, 3, 37, 300, queries, bank))
    check(device, *problem(23, 3, 37, 512, queries, bank, whole=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape",
    [
        (118, 11, 50, 2048),
        (40, 2, 33, 1024),
        (300, 1, 17, 70),
        (9, 5, 16, 257),
        (5, 40, 1, 31),
        (4, 2, 3, 1),
        (1, 1, 1, 1),
        (0, 2, 3, 4),
        (3, 2, 0, 4),
        (3, 2, 3, 0),
    ],
    ids=str,
)
def test_odd_sizes(shape, device):
    check(device, *problem(*shape))


@pytest.mark.parametrize("device", DEVICES)
def test_equal_rows_are_equally_far_wherever_they_stand(device):
    queries, _, bank, _ = problem(16, 2, 1, 700)
    copies = bank.expand(2, 45, 700).clone()
    copies[:, :7] += 1  # farther
    classes, filled = torch.arange(16) % 2, torch.tensor([45, 29])
    distances, rows, _ = check(device, queries, classes, copies, filled)
    assert (rows == 7).all()
    for n in range(7, 45):
        alone = ops.nearest_l1(*to(device, queries, classes, copies[:, n : n + 1], torch.ones(2).long()))[0]
        assert_same(distances, alone)


@pytest.mark.parametrize("device", DEVICES)
def test_one_query_of_many_equals_itself_alone(device):
    queries, classes, bank, filled = to(device, *problem(30, 3, 40, 600))
    distances, rows = ops.nearest_l1(queries, classes, bank, filled)
    for n in range(0, 30, 7):
        alone = ops.nearest_l1(queries[n : n + 1], classes[n : n + 1], bank, filled)
        assert_same(distances[n : n + 1], alone[0])
        assert_same(rows[n : n + 1], alone[1])


@pytest.mark.parametrize("device", DEVICES)
def test_classes_of_unequal_size_in_one_launch_equal_a_bank_each(device):
    queries, stuff_of, stuff, stuff_filled = problem(20, 4, 5, 130, whole=True)
    more, thing_of, things, things_filled = problem(30, 3, 50, 130, whole=True, seed=1)
    classes = torch.cat([stuff_of, torch.where(thing_of >= 0, thing_of + 4, -1)])
    flat = torch.cat([stuff.flatten(0, 1), things.flatten(0, 1), torch.full((1, 130), torch.nan)])
    starts = torch.cat([torch.arange(4) * 5, 20 + torch.arange(3) * 50])
    arguments = torch.cat([queries, more]), classes, flat, starts, torch.cat([stuff_filled, things_filled])
    distances, rows = nearest_l1_ragged(*to(device, *arguments), 50)
    apart = [reference.nearest_l1(queries, stuff_of, stuff, stuff_filled)]
    apart.append(reference.nearest_l1(more, thing_of, things, things_filled))
    assert_same(distances, torch.cat([a[0] for a in apart]))
    assert_same(rows, torch.cat([a[1] for a in apart]))


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides_and_integer_dtypes(device):
    queries, classes, bank, filled = problem(12, 3, 20, 90, whole=True)
    expected = reference.nearest_l1(queries, classes, bank, filled)
    queries, classes, bank, filled = to(device, queries, classes, bank, filled)
    wide = torch.full((3, 25, 200), torch.nan, device=device)
    wide[:, :20, 5:185:2] = bank
    views = [
        (queries, classes, wide[:, :20, 5:185:2]),
        (queries.T.contiguous().T, classes, bank.permute(2, 0, 1).contiguous().permute(1, 2, 0)),
        (
            queries.repeat(1, 2)[:, :90],
            torch.stack([classes, classes], 1)[:, 0],
            bank.transpose(0, 1).contiguous().mT.mT.transpose(0, 1),
        ),
    ]
    for q, c, b in views:
        for got, want in zip(ops.nearest_l1(q, c, b, filled), expected, strict=True):
            assert_same(got, want)
    for dtype in INTEGERS:
        if dtype != torch.uint8:
            assert_same(ops.nearest_l1(queries, classes.to(dtype), bank, filled.to(dtype))[1], expected[1])
        else:
            assert_same(ops.nearest_l1(queries, classes, bank, filled.to(dtype))[1], expected[1])


@pytest.mark.parametrize("device", DEVICES)
def test_no_wrong_class_or_count_is_followed(device):
    queries, _, bank, _ = to(device, *problem(7, 3, 4, 10, whole=True))
    classes = torch.tensor([3, -2, 2**40, -(2**63), 2**63 - 1, 2**32, 0], device=device)
    distances, rows = ops.nearest_l1(queries, classes, bank, torch.tensor([-5, 0, 0], device=device))
    assert rows.tolist() == [-1] * 7
    assert distances.isinf().all()
    for k in (0, 2):  # a count too large must lead neither into the next class nor behind the last one
        whole = ops.nearest_l1(queries, classes * 0 + k, bank, torch.tensor([4, 4, 4], device=device))
        too_many = ops.nearest_l1(queries, classes * 0 + k, bank, torch.tensor([2**40, 4, 5], device=device))
        assert_same(too_many[0], whole[0])
        assert_same(too_many[1], whole[1])
    flat, starts = bank.flatten(0, 1), torch.tensor([10, -1], device=device)
    of = torch.arange(7, device=device) % 2
    beyond = nearest_l1_ragged(queries, of, flat, starts, torch.tensor([4, 4], device=device), 4)
    cut = nearest_l1_ragged(queries, of, flat, starts.abs(), torch.tensor([2, 0], device=device), 4)
    assert_same(beyond[0], cut[0])
    assert_same(beyond[1], cut[1])


@pytest.mark.parametrize("device", DEVICES)
def test_more_rows_than_can_be_counted_are_refused(device):
    classes, filled = torch.zeros(16, device=device).long(), torch.tensor([4], device=device)
    for width in (4, 0):
        queries, row = torch.ones(16, width, device=device), torch.ones(1, 1, width, device=device)
        with pytest.raises(
            (RuntimeError, ValueError), match=r"^nearest_l1: .* less than 2\^31, got 16 .*152921504606846976"
        ):
            ops.nearest_l1(queries, classes, row.expand(1, 2**60, width), filled)
    flat = torch.ones(5, 4, device=device)  # what a class may have is another matter: the flat bank has no more
    _, rows = nearest_l1_ragged(torch.ones(16, 4, device=device), classes, flat, filled * 0, filled, 2**60)
    assert rows.tolist() == [0] * 16


@pytest.mark.parametrize("device", DEVICES)
def test_nan_comes_out_and_what_is_not_filled_stays_out(device):
    inf, nan = torch.inf, torch.nan
    bank = torch.tensor([[[0.0, 1.0], [nan, 0.0], [nan, nan]], [[inf, 0.0], [1.0, 0.0], [nan, nan]]], device=device)
    queries = torch.tensor([[0.0, 1.0], [0.0, 1.0], [nan, 1.0], [inf, 0.0], [-inf, 0.0]], device=device)
    classes = torch.tensor([0, 1, 1, 1, 1], device=device)
    distances, rows = ops.nearest_l1(queries, classes, bank, torch.tensor([3, 2], device=device))
    expected = torch.tensor([nan, 2.0, nan, nan, inf])
    torch.testing.assert_close(distances.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert rows.tolist() == [1, 1, 0, 0, 0]  # as arg-min: the first NaN, the first of equals


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_is_zero_where_nothing_is_near_whatever_comes_back(device):
    queries, classes, bank, filled = to(device, *problem(6, 2, 3, 5, whole=True))
    classes = torch.tensor([-1, 0, 1, -1, 0, 1], device=device)
    filled = torch.tensor([0, 3], device=device)
    queries.requires_grad_()
    distances, rows = ops.nearest_l1(queries, classes, bank, filled)
    (distances.exp() * torch.nan).sum().backward()
    assert rows.tolist()[:2] == [-1, -1]
    assert_same(queries.grad[rows < 0], torch.zeros(4, 5))
    assert queries.grad[rows >= 0].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_is_of_the_rows_that_forward_saw(device):
    queries, classes, bank, filled = to(device, *problem(20, 2, 9, 30))
    expected = check(device, *problem(20, 2, 9, 30))[2]
    scale = torch.randn(20, generator=torch.Generator().manual_seed(1)).to(device)
    queries.requires_grad_()
    bank.requires_grad_()
    distances, _ = ops.nearest_l1(queries, classes, bank, filled)
    assert sorted((tuple(x.shape), x.dtype) for x in distances.grad_fn.saved_tensors) == [
        ((20,), torch.int64),
        ((20, 30), torch.int8),
    ]
    with torch.no_grad():
        bank.fill_(torch.nan)  # as a bank's next write does, in place
    distances.backward(scale)
    assert_same(queries.grad, expected)
    assert bank.grad is None


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_in_every_run_and_in_poisoned_memory(device):
    arguments = problem(60, 4, 70, 530, bank=torch.bfloat16)
    first = check(device, *arguments)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what a kernel gets uninitialised with NaN
    try:
        again = check(device, *arguments)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)


def test_same_bits_whatever_the_number_of_threads():
    arguments = problem(60, 4, 70, 530)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(check("cpu", *arguments))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert_same(a, b)


def test_gradcheck():
    queries, classes, bank, filled = problem(5, 2, 4, 6, torch.float64, torch.float64)
    found = ops.nearest_l1(queries, classes, bank, filled)[1] >= 0
    queries = (queries + 0.01 * torch.arange(6)).requires_grad_()  # no difference of exactly 0
    assert found.any()
    assert torch.autograd.gradcheck(lambda q: ops.nearest_l1(q, classes, bank, filled)[0][found], queries)


def test_second_derivative_is_refused():
    queries, classes, bank, filled = problem(5, 1, 4, 6)
    queries.requires_grad_()
    distances, _ = ops.nearest_l1(queries, classes * 0, bank, filled * 0 + 4)
    (grad,) = torch.autograd.grad((distances**2).sum(), queries, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^nearest_l1: can be differentiated once"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    arguments = to(device, *problem(9, 2, 5, 40))
    plain = ops.nearest_l1(*arguments)
    with torch.autocast(device, torch.bfloat16):
        for got, want in zip(ops.nearest_l1(*arguments), plain, strict=True):
            assert_same(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    queries, classes, bank, filled = to(device, *problem(9, 2, 5, 40))
    queries.requires_grad_()
    starts = torch.tensor([4, 0], device=device)
    operator = torch.ops.simfast.nearest_l1.default
    torch.library.opcheck(operator, (queries, classes, bank.flatten(0, 1), None, filled, 5))
    torch.library.opcheck(operator, (queries, classes, bank.flatten(0, 1), starts, filled.clamp(max=4), 5))
    _, rows, signs = operator(queries, classes, bank.flatten(0, 1), None, filled, 5)
    backward = torch.ops.simfast.nearest_l1_backward.default
    grad = torch.ones(9, device=device)
    torch.library.opcheck(backward, (grad, rows, signs, torch.bfloat16))
    torch.library.opcheck(backward, (grad[:1].expand(9), rows, signs, torch.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break_for_two_sizes(device):
    def loss(queries, classes, bank, filled):
        distances, rows = ops.nearest_l1(queries, classes, bank, filled)
        return torch.where(rows >= 0, distances, 0).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((20, 3, 7, 64), (33, 2, 18, 50)):
        queries, *others = to(device, *problem(*shape))
        queries.requires_grad_()
        got, want = compiled(queries, *others), loss(queries, *others)
        assert_same(got.detach(), want.detach())
        grads = [torch.autograd.grad(x, queries)[0] for x in (got, want)]
        assert_same(*grads)
        assert grads[0].abs().sum() > 0


@needs_gpu
def test_runs_without_a_sync_and_in_a_cuda_graph():
    queries, classes, bank, filled = to("cuda", *problem(118, 11, 60, 2048))
    queries.requires_grad_()

    def step():
        distances, rows = ops.nearest_l1(queries, classes, bank, filled)
        return distances, rows, torch.autograd.grad(torch.where(rows >= 0, distances, 0).sum(), queries)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (5, 6):
        for into, new in zip((queries, classes, bank, filled), problem(118, 11, 60, 2048, seed=seed), strict=True):
            into.data.copy_(new)
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            assert_same(got, want)


def test_signature_is_the_references():
    assert inspect.signature(ops.nearest_l1) == inspect.signature(reference.nearest_l1)


QUERIES, CLASSES, BANK, FILLED = torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(4, 5, 3), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((QUERIES[0], CLASSES, BANK, FILLED), ValueError, r"queries must be .* with 2 dimensions .*got float32 \[3\]"),
        ((QUERIES.int(), CLASSES, BANK, FILLED), ValueError, r"queries must be float32, .*got int32"),
        ((QUERIES, CLASSES, BANK[0], FILLED), ValueError, r"bank must be .* with 3 dimensions .*got float32 \[5, 3\]"),
        ((QUERIES, CLASSES, BANK[..., :2], FILLED), ValueError, r"bank must have the width 3 of queries, got 2"),
        ((QUERIES, CLASSES[:1], BANK, FILLED), ValueError, r"classes must be integer \[2\], .*got int64 \[1\]"),
        ((QUERIES, CLASSES.float(), BANK, FILLED), ValueError, r"classes must be integer \[2\], .*got float32"),
        ((QUERIES, CLASSES, BANK, FILLED[:3]), ValueError, r"filled must be integer \[4\], .*got int64 \[3\]"),
        ((QUERIES, CLASSES, BANK, [0] * 4), TypeError, r"filled must be a tensor, got list"),
        (
            (QUERIES.to("meta"), CLASSES, BANK, FILLED),
            ValueError,
            r"classes must be on the queries' device meta, got cpu",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"^nearest_l1: {message}"):
        ops.nearest_l1(*arguments)
