"""What `step_mode` and `precision` of the settings mean on a device."""

import torch

from simfast.runtime import distributed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_mode(asked: str, device: torch.device) -> str:
    """The step mode that is meant on a device.

    Raises:
        ValueError: a CUDA graph was asked for and there is no GPU, or there are several processes.
    """
    if distributed.size() > 1:
        if "graph" in asked:
            raise ValueError(f"step_mode: must be eager, compile or auto with several processes, got {asked!r}")
        return "eager" if asked == "auto" else asked
    if "graph" in asked and device.type != "cuda":
        raise ValueError(f"step_mode: must be eager, compile or auto without a GPU, got {asked!r}")
    if asked == "auto":
        return "graph" if device.type == "cuda" else "eager"
    return asked


def resolve_precision(asked: str, device: torch.device) -> str:
    """The precision that is meant on a device: auto takes bf16 where the GPU computes in it, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
