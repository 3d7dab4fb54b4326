"""Switches of torch that are the whole process's: a run needs them its own way, a program around may have others."""

import contextlib
import os
import threading
from collections.abc import Iterator

import torch

_one = threading.Lock()
# What matrix products on a GPU need to be deterministic, before the first one (NVIDIA cuBLAS documentation).
_CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@contextlib.contextmanager
def own_switches(deterministic: bool) -> Iterator[None]:
    """Context of a run, in which torch computes as a run needs it; at its end switches and random numbers are as they
    were.

    Args:
        deterministic: whether the same work gives the same bits.

    Raises:
        ValueError: another run is in this process, whose switches and random numbers would be the same ones.
    """
    if not _one.acquire(blocking=False):
        raise ValueError("train: one run at a time in a process must have torch's switches, got a second one")
    try:
        with _switched(deterministic), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _one.release()


@contextlib.contextmanager
def _switched(deterministic: bool) -> Iterator[None]:
    asked = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    dtype, state, seed = torch.get_default_dtype(), torch.get_rng_state(), torch.initial_seed()
    # Asking the GPUs for theirs would begin to use them.
    states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    # Which imports half of torch, and so not where an interrupted import would come in the way of putting all back.
    torch.use_deterministic_algorithms(asked, warn_only=warn_only)
    new = {name: value for name, value in _CUBLAS.items() if deterministic and name not in os.environ}
    try:
        os.environ.update(new)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a pass over every fresh tensor, to find bugs
        torch.backends.cudnn.benchmark = not deterministic
        torch.set_default_dtype(torch.float32)
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        torch.use_deterministic_algorithms(asked, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
        torch.set_default_dtype(dtype)
        if states is None:
            torch.cuda.manual_seed_all(seed)  # what they begin from, as the CPU does
        else:
            torch.cuda.set_rng_state_all(states)
        torch.set_rng_state(state)
