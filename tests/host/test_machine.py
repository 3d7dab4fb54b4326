"""The machine that runs CUDA kernels on the CPU: it finds what it promises to find, and its arithmetic is CUDA's."""

import host_build
import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def cases():
    return host_build.load(host_build.build_machine_cases())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("part_of_a_block_waits", "deadlock, 64 threads of block 0"),
        ("two_barriers", "two different barriers"),
        ("lane_outside_its_mask", "not in its own mask"),
        ("lanes_in_two_collectives", "two different collectives"),
        ("store_past_the_end", "past the end of the static shared memory"),
        ("store_past_the_dynamic_end", "past the end of the dynamic shared memory"),
        ("misaligned_copy", "a misaligned copy"),
        ("no_threads", "no blocks or of no threads"),
    ],
)
def test_a_wrong_kernel_is_reported(cases, case, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(cases, case)()
    assert cases.sum() == 49616  # and the machine still works: lanes 0..31 sum to 496, 16 of 48 threads voted


def test_shared_memory_starts_as_poison_in_every_block(cases):
    assert cases.unwritten_shared()


def test_a_missing_barrier_shows(cases):
    assert cases.neighbour(False, 0) > 0
    assert cases.neighbour(False, 1) > 0
    assert [cases.neighbour(True, seed) for seed in range(5)] == [0] * 5


def test_an_asynchronous_copy_may_land_at_once_and_must_be_waited_for(cases):
    assert cases.neighbour_copy(False, 0) == 64
    assert 0 < cases.neighbour_copy(False, 1) < 64
    assert [cases.neighbour_copy(True, seed) for seed in range(5)] == [0] * 5


def test_a_wait_leaves_the_last_groups_under_way(cases):
    assert cases.two_copies(0) == (64, 0)
    first, second = cases.two_copies(1)
    assert first > 0
    assert second > 0
    assert first + second == 64


def test_half_is_ieee_half(cases):
    every = np.arange(65536, dtype=np.uint16)
    expected = every.view(np.float16).astype(np.float32)
    got = np.array([cases.half_to_float(int(x)) for x in every], np.float32)
    np.testing.assert_array_equal(got, expected)


def test_rounding_to_16_bits_is_to_nearest_even(cases):
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2  # ties, exactly
    rng = np.random.default_rng(0)
    spread = np.ldexp(rng.standard_normal(3000), rng.integers(-30, 20, 3000)).astype(np.float32)
    edges = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e30, np.inf]
    values = np.concatenate([between[::7], -between[3::11], spread, edges]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal([cases.float_to_half(float(v)) for v in values], expected)
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal([cases.float_to_bfloat16(float(v)) for v in values], expected)
    back = [cases.bfloat16_to_float(int(v)) for v in expected]
    np.testing.assert_array_equal(back, torch.from_numpy(values).bfloat16().float().numpy())
