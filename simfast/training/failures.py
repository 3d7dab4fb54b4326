"""Errors of a run in one line: what went wrong, and which setting helps."""

import gc
import re
import traceback

import torch

from simfast.config import Config
from simfast.training.modes import resolve_precision
from simfast.training.step import Trainer

# Of torch's RuntimeErrors, which have no class for it.
OUT_OF_MEMORY = re.compile(
    "can't allocate memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
)

# Pixels of an image up to which most of the memory is the network's own.
SMALL = 128 * 128


def explained(error: BaseException, config: Config, trainer: Trainer | None = None) -> ValueError | None:
    """What to say in place of an error that comes of too little memory; None for any other.

    Args:
        error: as it came. Where it is of this kind, what its frames hold is released.
        config: the run's settings.
        trainer: its networks, if there are any yet.
    """
    cause = of_memory(error)
    if cause is None:
        return None
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    # Our ops say which device only where torch lets them know.
    of_ops = trainer is not None and trainer.device.type == "cuda" and ": no memory for " in str(cause)
    on_gpu = is_of_gpu(cause) or of_ops
    if on_gpu:
        torch.cuda.empty_cache()
    if trainer is not None:
        precision = trainer.precision
    else:
        precision = resolve_precision(config.precision, torch.device("cuda" if on_gpu else "cpu"))
    sizes = "source {}x{}, target {}x{}".format(*config.source_size, *config.target_size)
    what = f"out of memory on the {'GPU' if on_gpu else 'CPU'} with {sizes}, batch_size {config.batch_size}, "
    what += f"{config.arch} in {precision}"
    return ValueError(f"{what}; {_remedy(config, precision, on_gpu)}")


def of_memory(error: BaseException) -> BaseException | None:
    """The error of too little memory that another one comes of, or is; None where there is none."""
    if isinstance(error, ValueError | OSError):  # which says all itself
        return None
    cause: BaseException | None = error
    while cause is not None and not _is_of_memory(cause):
        cause = cause.__cause__ or cause.__context__
    return cause


def is_of_gpu(cause: BaseException) -> bool:
    """Whether it is the GPU's memory that an error of `of_memory` speaks of."""
    return isinstance(cause, torch.OutOfMemoryError) or "CU" in str(cause)


def retold(error: Exception, text: str) -> Exception:
    """A ValueError or OSError, whichever it was, with another text."""
    return (OSError if isinstance(error, OSError) else ValueError)(text)


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def _remedy(config: Config, precision: str, on_gpu: bool) -> str:
    """The setting that matters most, then the others."""
    sizes = {"source": config.source_size, "target": config.target_size}
    name, (width, height) = max(sizes.items(), key=lambda one: one[1][0] * one[1][1])
    tries = [f"--batch-size {config.batch_size // 2}"] if config.batch_size > 1 else []
    tries += ["--precision bf16"] if on_gpu and precision == "fp32" else []
    if width * height > SMALL:
        tries += [f"--{name}-size {max(32, width * 3 // 4)} {max(32, height * 3 // 4)}"]
    elif config.arch != "resnet18":
        tries += ["--arch resnet18"]
    if on_gpu and config.memory == "usual" and config.arch.startswith("resnet") and config.batch_norm != "frozen":
        tries += ["--fuse norms --memory low"]
    tries += ["fewer --workers"] if not on_gpu and config.workers else []
    if not tries:
        return "what helps is memory that other programs give back"
    return f"what helps most in a new run is {tries[0]}" + (f" (else {', '.join(tries[1:])})" if tries[1:] else "")
