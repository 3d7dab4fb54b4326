"""The ops that join regions and banks: equal to simfast.reference, in place where they say so, with their gradient."""

import inspect

import pytest
import torch

from simfast import ops, reference
from simfast.testing import DEVICES, assert_same

NAMES = ["ring_write", "select_rings", "matching_losses"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def make_rings(number=40, width=10, dtype=torch.float32, device="cpu"):
    """Arguments of ring_write: rings of 3, 1 and 30 rows, the first of which has been written before."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor([3, 1, 30])
    arguments = (
        torch.randn(36, width, generator=g).to(dtype),
        torch.tensor([7, 0, 0]),
        torch.randn(number, width, generator=g),
        torch.randint(-1, 3, (number,), generator=g),
        torch.tensor([0, 4, 6]),
        sizes,
    )
    return [x.to(device) for x in arguments]


def make_slots(images=2, num_stuff=3, num_things=2, max_instances=4, device="cpu", dtype=torch.float32):
    """Arguments of matching_losses."""
    g = torch.Generator().manual_seed(0)
    shape = (images, num_stuff + num_things * max_instances)
    rows, rings = torch.randint(-1, 5, shape, generator=g), torch.randint(-1, 3, shape, generator=g)
    distances = torch.where(rows >= 0, torch.rand(shape, generator=g, dtype=dtype), torch.inf)
    return *(x.to(device) for x in (distances, rows, rings)), num_stuff, max_instances, 64


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_the_references(name):
    assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_a_write_equals_the_reference_to_the_bit(stored, given, device):
    if device == "cuda" and torch.float64 in (stored, given):
        pytest.skip("float64 is the CPU's")
    ours, theirs = make_rings(dtype=stored, device=device), make_rings(dtype=stored)
    for _ in range(3):  # the rings wrap
        ops.ring_write(*ours[:2], ours[2].to(given), *ours[3:])
        reference.ring_write(*theirs[:2], theirs[2].to(given), *theirs[3:])
    assert_same(ours[0], theirs[0], "storage")
    assert_same(ours[1], theirs[1], "written")


@pytest.mark.parametrize("device", DEVICES)
def test_a_write_of_rows_of_the_storage_itself_equals_the_reference(device):
    ours, theirs = make_rings(device=device), make_rings()
    for op, (storage, written, _, classes, *rings) in ((ops.ring_write, ours), (reference.ring_write, theirs)):
        op(storage, written, storage[5:25], torch.full_like(classes[:20], 2), *rings)
    assert_same(ours[0], theirs[0])


@pytest.mark.parametrize("device", DEVICES)
def test_a_ring_with_a_negative_count_is_left_alone(device):
    storage, written, vectors, classes, *rings = make_rings(device=device)
    written[2] = -5  # from row 6 that would lead to row 1, which is another ring's
    before = storage.clone()
    ops.ring_write(storage, written, vectors, torch.full_like(classes, 2), *rings)
    assert torch.equal(storage, before)
    assert written.tolist() == [7, 0, -5]


def test_a_write_of_values_that_lie_between_two_rounds_as_torch_does():
    values = torch.tensor([[1 + 2**-9, 1 + 3 * 2**-9, -0.0, torch.inf, 2**-133, 65519.9, 65520.0, 1e-40]])
    for dtype in DTYPES[1:3]:
        storage, written = torch.ones(1, 8, dtype=dtype), torch.zeros(1, dtype=torch.int64)
        ops.ring_write(storage, written, values, torch.zeros(1).long(), torch.zeros(1).long(), torch.ones(1).long())
        assert torch.equal(storage.view(torch.int16), values.to(dtype).view(torch.int16))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_rings_equal_the_reference_with_and_without_a_gate(dtype, device):
    g = torch.Generator().manual_seed(0)
    areas = torch.randint(0, 3, (3, 7), generator=g, dtype=torch.int32)
    slot_rings, slot_classes = torch.arange(7) // 2, torch.randint(2, (7,), generator=g)
    assert_same(ops.select_rings(areas, slot_rings), reference.select_rings(areas, slot_rings))
    for gated in (7, 2):
        logits = torch.randint(0, 2, (3 * gated, 4), generator=g).to(dtype)  # ties everywhere
        logits[0, 1:3] = torch.nan
        expected = reference.select_rings(areas, slot_rings, logits, slot_classes)
        arguments = (x.to(device) for x in (areas, slot_rings, logits, slot_classes))
        assert_same(ops.select_rings(*arguments), expected)
        assert (expected >= 0).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", [(1, 8, 11, 10), (3, 2, 4, 3), (2, 0, 3, 1), (2, 5, 0, 1), (0, 2, 2, 2)], ids=str)
def test_losses_equal_the_reference_and_their_gradient_does_to_the_bit(sizes, device):
    distances, *others = make_slots(*sizes)
    ours, theirs = distances.to(device, copy=True).requires_grad_(), distances.clone().requires_grad_()
    on_device = (x.to(device) if isinstance(x, torch.Tensor) else x for x in others)
    losses, expected = ops.matching_losses(ours, *on_device), reference.matching_losses(theirs, *others)
    for loss, other in zip(losses, expected, strict=True):
        torch.testing.assert_close(loss.cpu(), other, rtol=1e-6, atol=0)
    if distances.numel():
        for found, pair in ((losses, ours), (expected, theirs)):
            (0.01 * found[0] + 0.3 * found[1]).backward()
            assert pair.grad.isfinite().all()
        assert_same(ours.grad, theirs.grad, "gradient")


def test_the_losses_of_a_batch_are_the_mean_of_its_images():
    distances, rows, rings, *sizes = make_slots(images=4)
    whole = torch.stack(ops.matching_losses(distances, rows, rings, *sizes))
    parts = [
        torch.stack(ops.matching_losses(*(x[b : b + 1] for x in (distances, rows, rings)), *sizes)) for b in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))


def test_losses_by_hand():
    distances = torch.tensor([[6.0, torch.inf, 2.0, 4.0, torch.inf]])  # one stuff class, two of two instances
    rows, rings = torch.tensor([[0, -1, 3, 1, -1]]), torch.tensor([[0, -1, 1, 2, 2]])
    stuff, instances = ops.matching_losses(distances, rows, rings, 1, 2, 2)
    assert stuff == 3  # 6 / 2 features
    assert instances == 1 + 1  # 2 / 2 over one region; (4 / 2 + 0) over two, one of which has nothing near


def test_a_loss_nobody_differentiates_has_no_gradient():
    distances, *others = make_slots()
    distances.requires_grad_()
    ops.matching_losses(distances, *others)[0].backward()
    assert not distances.grad[:, 3:].any()
    assert distances.grad[:, :3].any()


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    simfast = torch.ops.simfast
    torch.library.opcheck(simfast.ring_write.default, tuple(make_rings(device=device)))
    areas, slots = torch.ones(2, 5, dtype=torch.int32, device=device), torch.arange(5, device=device)
    logits = torch.randn(4, 3, device=device)
    torch.library.opcheck(simfast.select_rings.default, (areas, slots, None, None))
    torch.library.opcheck(simfast.select_rings.default, (areas, slots, logits, slots))
    distances, *others = make_slots(device=device)
    torch.library.opcheck(simfast.matching_losses.default, (distances.requires_grad_(), *others))
    grads = torch.ones((), device=device), torch.ones((), device=device)
    torch.library.opcheck(simfast.matching_losses_backward.default, (*grads, *others))


def test_compiled_they_equal_eager():
    def step(storage, written, vectors, classes, starts, sizes):
        ops.ring_write(storage, written, vectors, classes, starts, sizes)
        return storage.sum(1)

    eager, compiled = make_rings(), make_rings()
    expected = step(*eager)
    assert_same(torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled), expected)
    assert_same(compiled[0], eager[0])
    assert_same(compiled[1], eager[1])


def test_what_is_no_tensor_is_named():
    for call, message in (
        (lambda: ops.ring_write(*make_rings()[:2], [[1.0]], *make_rings()[3:]), "ring_write: vectors"),
        (lambda: ops.select_rings([[1]], torch.zeros(1).long()), "select_rings: areas"),
        (lambda: ops.matching_losses(make_slots()[0], [[1]], *make_slots()[2:]), "matching_losses: rows"),
    ):
        with pytest.raises(TypeError, match=f"^{message} must be a tensor, got list$"):
            call()


def test_bad_input_is_named():
    storage, written, vectors, classes, starts, sizes = make_rings()
    areas, slots = torch.ones(2, 5, dtype=torch.int32), torch.arange(5)
    distances, rows, rings, *more = make_slots()
    cases = [
        (r"storage must be .* got int64 \[36, 10\]", lambda: ops.ring_write(storage.long(), *make_rings()[1:])),
        (
            "storage must be contiguous",
            lambda: ops.ring_write(storage[:, :5], written, vectors[:, :5], *make_rings()[3:]),
        ),
        (
            "width 10 of storage, got 9",
            lambda: ops.ring_write(storage, written, vectors[:, 1:], classes, starts, sizes),
        ),
        (r"classes must be int64 \[40\]", lambda: ops.ring_write(storage, written, vectors, sizes, starts, sizes)),
        (r"starts must be int64 \[3\]", lambda: ops.ring_write(storage, written, vectors, classes, slots, sizes)),
        (r"areas must be int32 \[B, S\], got int64", lambda: ops.select_rings(areas.long(), slots)),
        (r"slot_rings must be int64 \[5\]", lambda: ops.select_rings(areas, slots[1:])),
        ("slot_classes must be given", lambda: ops.select_rings(areas, slots, torch.zeros(10, 3))),
        ("at most 5, for each of 2 images", lambda: ops.select_rings(areas, slots, torch.zeros(3, 3), slots)),
        (r"rows must be int64 \[2, 11\]", lambda: ops.matching_losses(distances, rows[1:], rings, *more)),
        ("3 slots and a multiple of 5", lambda: ops.matching_losses(distances, rows, rings, 3, 5, 64)),
        ("num_features at least 1, got 3, 4, 0", lambda: ops.matching_losses(distances, rows, rings, 3, 4, 0)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
