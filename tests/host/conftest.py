"""The CUDA kernels, built for the CPU once for all tests of this folder."""

import host_build
import pytest
import torch

# (seed, blocks in flight): plain order one block at a time, and shuffled threads and blocks that take turns.
ORDERS = [(0, 1), (1, 4)]


@pytest.fixture(scope="session")
def library():
    return host_build.load(host_build.build())


@pytest.fixture(params=ORDERS, ids=lambda order: f"order {order[0]}")
def host(library, request):
    """The module under each thread and block order."""
    library.configure(*request.param)
    yield library
    library.configure()


@pytest.fixture
def shuffled(library):
    """The module under one shuffled order, for tests about something else."""
    library.configure(seed=3)
    yield library
    library.configure()


def bits(x: torch.Tensor):
    """A tensor as the NumPy array that the module takes: 16-bit floats as uint16, strides kept."""
    return x.view(torch.uint16).numpy() if x.element_size() == 2 and x.is_floating_point() else x.numpy()
