"""select_rings: which ring each region's slot belongs to, and which regions the head turns away."""

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import FEATURE_DTYPES, came, check_tensors


def select_rings(
    areas: Tensor, slot_rings: Tensor, logits: Tensor | None = None, slot_classes: Tensor | None = None
) -> Tensor:
    """The ring of each slot that holds a region; -1 where it holds none, or the head gives it another class.

    Args:
        areas: int32 [B, S], of `find_regions`.
        slot_rings: int64 [S].
        logits: [B * G, L], G at most S, float32, float16 or bfloat16 (on the CPU also float64): what the head says of
            the first G slots of each image. They count where its arg-max, the first of the largest, is the slot's
            class. None: all count.
        slot_classes: int64 [S], with logits.

    Returns:
        int64 [B, S]. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit.

    Source: "regions with area > 0" of Algorithm 1; the released code's gate.
    """
    check_tensors("select_rings", areas=areas, slot_rings=slot_rings)
    if areas.dtype != torch.int32 or areas.ndim != 2:
        raise ValueError(f"select_rings: areas must be int32 [B, S], {came(areas)}")
    _check_slots("slot_rings", slot_rings, areas)
    if logits is not None:
        if slot_classes is None:
            raise ValueError("select_rings: slot_classes must be given with logits, got None")
        check_tensors("select_rings", logits=logits, slot_classes=slot_classes)
        _check_slots("slot_classes", slot_classes, areas)
        _check_logits(logits, areas)
        logits = logits.detach()
    library.require("select_rings", areas.device)
    return torch.ops.simfast.select_rings.default(areas, slot_rings, logits, slot_classes)


def _check_slots(name: str, x: Tensor, areas: Tensor) -> None:
    if x.dtype != torch.int64 or x.shape != areas.shape[1:]:
        raise ValueError(f"select_rings: {name} must be int64 [{areas.shape[1]}], one for each slot, {came(x)}")
    if x.device != areas.device:
        raise ValueError(f"select_rings: {name} must be on the areas' device {areas.device}, got {x.device}")


def _check_logits(logits: Tensor, areas: Tensor) -> None:
    double_on_cpu = logits.dtype == torch.float64 and logits.device.type != "cuda"
    if logits.ndim != 2 or logits.shape[1] == 0 or not (logits.dtype in FEATURE_DTYPES or double_on_cpu):
        raise ValueError(
            f"select_rings: logits must be float32, float16 or bfloat16 [B * G, L] (float64 on the CPU), {came(logits)}"
        )
    images, slots = areas.shape
    if images == 0 or logits.shape[0] % images or logits.shape[0] > images * slots:
        raise ValueError(
            f"select_rings: logits must be of the same number of slots, at most {slots}, for each of {images} images, "
            f"{came(logits)}"
        )
    if logits.device != areas.device:
        raise ValueError(f"select_rings: logits must be on the areas' device {areas.device}, got {logits.device}")


if library.available():

    @torch.library.register_fake("simfast::select_rings")
    def _(areas: Tensor, slot_rings: Tensor, logits: Tensor | None, slot_classes: Tensor | None) -> Tensor:
        return areas.new_empty(areas.shape, dtype=torch.int64)
