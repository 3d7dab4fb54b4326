"""Loads the native library when `simfast.ops` is imported; what went wrong is told when an op is called."""

import ctypes
import os
from pathlib import Path

import torch

import simfast

# A checkout, or an installed package. SIMFAST_NATIVE=1: what a build lacks is then said, and the library not left out.
_SOURCE = "--no-build-isolation -e ."
if not Path(simfast.__file__).parents[1].joinpath("setup.py").exists():
    _SOURCE = "--force-reinstall --no-deps --no-binary simfast simfast"
REMEDY = f"build it with `SIMFAST_NATIVE=1 pip install {_SOURCE}`"


def _load(path: Path) -> str | None:
    """None if the library is there and fits, else one sentence that says what is wrong and what mends it."""
    if not path.exists():
        return f"simfast.ops: the native library is missing; {REMEDY}"
    try:
        torch.ops.load_library(path)
        version = ctypes.CDLL(str(path)).simfast_version
    except (OSError, AttributeError, RuntimeError) as failure:
        reason = " ".join(str(failure).split())
        return f"simfast.ops: the native library does not load into torch {torch.__version__} ({reason}); re{REMEDY}"
    version.restype = ctypes.c_char_p
    built = version().decode()
    if built != simfast.__version__:
        return f"simfast.ops: the native library is of simfast {built}, this is {simfast.__version__}; re{REMEDY}"
    return None


# SIMFAST_LIBRARY names another build of it, as one for the stub GPU of tests/stub.
error = _load(Path(os.environ.get("SIMFAST_LIBRARY") or Path(simfast.__file__).with_name("_simfast.so")))


def available(device: torch.device | str = "cpu") -> bool:
    """Whether the ops can be called on a device: the native library is there, fits, and was built for it."""
    return lack(torch.device(device)) is None


def lack(device: torch.device) -> str | None:
    """One sentence that says why no op can be called on `device`, and what mends it; None if they can."""
    if error is not None:
        return error
    if device.type not in _devices:
        return (
            f"the native library was built without kernels for {device.type}; "
            f"for CUDA, re{REMEDY.replace('SIMFAST_NATIVE=1', 'SIMFAST_CUDA=1')}"
        )
    return None


def require(op: str, device: torch.device) -> None:
    """Raises RuntimeError if `op` cannot run on `device` with what was built."""
    if error is not None:
        raise RuntimeError(error)
    if (why := lack(device)) is not None:
        raise RuntimeError(f"{op}: {why}")


def _built_for() -> tuple[str, ...]:
    if error is not None:
        return ()
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key("simfast::segment_mean", "CUDA")
    return ("cpu", "cuda", "meta") if has_cuda else ("cpu", "meta")


_devices = _built_for()
