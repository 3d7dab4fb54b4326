"""The CUDA kernels that join regions and banks, on the CPU: exact whatever the order of threads and blocks."""

import numpy as np
import pytest
import torch
from conftest import bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simfast import ops, reference

# name: (N vectors, D, sizes of the rings, dtype). 512 vectors are one tile; 4 divides D or does not.
WRITES = {
    "training": (118, 64, [500] * 11 + [50] * 8, torch.float32),
    "training, bfloat16": (118, 64, [500] * 11 + [50] * 8, torch.bfloat16),
    "more vectors than rows": (700, 8, [3, 1, 40, 700], torch.float16),
    "three tiles": (1100, 4, [1000, 7], torch.float32),
    "odd width": (60, 7, [5, 9], torch.float32),
    "odd width, bfloat16": (60, 7, [5, 9], torch.bfloat16),
    "one value": (30, 1, [4, 4, 4], torch.float32),
    "one vector": (1, 12, [2], torch.float16),
}


def written_by(host, storage, written, vectors, classes, starts, sizes):
    """What the kernel makes of copies of storage and written."""
    storage, written = storage.clone(), written.clone()
    arrays = (x.numpy() for x in (vectors, classes, starts, sizes))
    host.ring_write(bits(storage), str(storage.dtype)[6:], written.numpy(), *arrays)
    return storage, written


def make_write(name, seed=0):
    """Rings that lie apart, with rows of nobody around them, some of them filled before."""
    number, width, sizes, dtype = WRITES[name]
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(sizes)
    starts = 2 + (sizes + 1).cumsum(0) - sizes - 1
    storage = torch.randn(int(sizes.sum()) + len(sizes) + 4, width, generator=g).to(dtype)
    written = torch.randint(0, 1000, sizes.shape, generator=g)
    classes = torch.randint(-2, len(sizes) + 2, (number,), generator=g)  # also what is no ring
    return storage, written, torch.randn(number, width, generator=g), classes, starts, sizes


@pytest.mark.parametrize("name", WRITES)
def test_ring_write_equals_the_reference(host, name):
    arguments = make_write(name)
    storage, written = written_by(host, *arguments)
    reference.ring_write(*arguments)
    assert torch.equal(storage, arguments[0])
    assert torch.equal(written, arguments[1])


def test_ring_write_reads_vectors_at_any_stride(shuffled):
    storage, written, vectors, classes, starts, sizes = make_write("training")
    wide = torch.full((len(vectors), 70), torch.nan)
    for first in (0, 1, 4):  # on and off the 16-byte grid
        wide[:, first : first + 64] = vectors
        got = written_by(shuffled, storage, written, wide[:, first : first + 64], classes, starts, sizes)
        assert torch.equal(got[0], written_by(shuffled, storage, written, vectors, classes, starts, sizes)[0])


def test_a_ring_that_leaves_the_storage_is_left_alone(shuffled):
    storage, written = torch.zeros(6, 4), torch.tensor([5, 5, 5, 5, -5])
    starts, sizes = torch.tensor([-1, 4, 0, 0, 2]), torch.tensor([2, 3, 0, 2, 3])
    classes = torch.tensor([0, 1, 2, 3, 4])
    got, counts = written_by(shuffled, storage, written, torch.ones(5, 4), classes, starts, sizes)
    assert got.sum(1).tolist() == [0, 4, 0, 0, 0, 0]
    assert counts.tolist() == [5, 5, 5, 6, -5]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 600), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**31))
def test_ring_write_equals_the_reference_on_random_sizes(library, number, sizes, seed):
    library.configure(seed % 1000, 4)
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(sizes)
    arguments = [
        torch.zeros(int(sizes.sum()), 4),
        torch.randint(0, 20, sizes.shape, generator=g),
        torch.randn(number, 4, generator=g),
        torch.randint(-1, len(sizes), (number,), generator=g),
        sizes.cumsum(0) - sizes,
        sizes,
    ]
    storage, written = written_by(library, *arguments)
    reference.ring_write(*arguments)
    assert torch.equal(storage, arguments[0])
    assert torch.equal(written, arguments[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("images", "slots", "gated", "classes"), [(1, 118, 118, 19), (3, 9, 2, 70), (2, 5, 0, 1)])
def test_select_rings_equals_the_reference(host, images, slots, gated, classes, dtype):
    g = torch.Generator().manual_seed(0)
    areas = torch.randint(0, 3, (images, slots), generator=g, dtype=torch.int32)
    slot_rings = torch.arange(slots) // 2
    slot_classes = torch.randint(classes, (slots,), generator=g)
    logits = torch.randint(-2, 3, (images * gated, classes), generator=g).to(dtype)  # ties everywhere
    logits[logits == 0] *= -1  # both zeros
    if gated:
        slot_classes[:gated] = logits.view(images, gated, classes)[0].argmax(1)  # the first image's count
        logits[0, -1] = torch.nan
    arrays = areas.numpy(), slot_rings.numpy(), bits(logits), str(dtype)[6:], slot_classes.numpy()
    expected = reference.select_rings(areas, slot_rings, logits if gated else None, slot_classes)
    np.testing.assert_array_equal(host.select_rings(*arrays), expected)
    assert (expected >= 0).any()


@pytest.mark.parametrize(
    ("images", "num_stuff", "num_things", "max_instances"),
    [(1, 8, 11, 10), (3, 8, 11, 10), (40, 2, 3, 1), (2, 0, 40, 12), (2, 50, 0, 1)],
)
def test_losses_and_gradient_equal_the_cpus_to_the_bit(host, images, num_stuff, num_things, max_instances):
    g = torch.Generator().manual_seed(0)
    shape = (images, num_stuff + num_things * max_instances)
    rows, rings = torch.randint(-1, 9, shape, generator=g), torch.randint(-1, 2, shape, generator=g)
    distances = torch.where(rows >= 0, 100 * torch.rand(shape, generator=g), torch.inf).requires_grad_()
    expected = ops.matching_losses(distances, rows, rings, num_stuff, max_instances, 2048)
    sizes = (num_stuff, max_instances, 2048 * images)
    got = host.matching_losses(distances.detach().numpy(), rows.numpy(), rings.numpy(), *sizes)
    assert [float(x[0]) for x in got] == [x.item() for x in expected]
    (gradient,) = torch.autograd.grad(0.3 * expected[0] + 0.7 * expected[1], distances)
    np.testing.assert_array_equal(
        host.matching_losses_backward(0.3, 0.7, rows.numpy(), rings.numpy(), *sizes), gradient
    )


def test_losses_of_no_images_are_zero(host):
    nothing = np.zeros((0, 7), np.int64)
    got = host.matching_losses(nothing.astype(np.float32), nothing, nothing, 4, 1, 2048)
    assert [float(x[0]) for x in got] == [0.0, 0.0]
