"""matching_losses: Eq. 6 and Eq. 8 of the distances by slot, and their gradient."""

import torch
from torch import Tensor

from simfast.ops import library
from simfast.ops.checks import came, check_tensors


def matching_losses(
    distances: Tensor, rows: Tensor, rings: Tensor, num_stuff: int, max_instances: int, num_features: int
) -> tuple[Tensor, Tensor]:
    """The stuff loss and the instance loss of the distances in `find_regions`' slots.

    Differentiable in distances, once.
    Each is the sum over classes and the mean over images of a class's mean distance over its regions, divided by
    num_features. A region without a row near it has distance 0. Sums are taken in the order of slots, classes and
    images; forward and backward are one launch each.

    Args:
        distances: float32 [B, S] (float64 on the CPU), of `nearest_l1`.
        rows: int64 [B, S], of `nearest_l1`: negative where nothing was near.
        rings: int64 [B, S], of `select_rings`: negative where there is no region.
        num_stuff: how many of the slots are stuff classes'.
        max_instances: slots of each thing class.
        num_features: C.

    Returns:
        (stuff loss, instance loss), scalars of the distances' dtype.

    Raises:
        TypeError, ValueError: naming the argument, the rule and what came.
        RuntimeError: the native library is missing or does not fit; or a second derivative was asked for.

    Source: Eq. 6 and Eq. 8.
    """
    check_tensors("matching_losses", distances=distances, rows=rows, rings=rings)
    double_on_cpu = distances.dtype == torch.float64 and distances.device.type != "cuda"
    if distances.ndim != 2 or not (distances.dtype == torch.float32 or double_on_cpu):
        raise ValueError(f"matching_losses: distances must be float32 [B, S] (float64 on the CPU), {came(distances)}")
    for name, x in (("rows", rows), ("rings", rings)):
        if x.dtype != torch.int64 or x.shape != distances.shape:
            raise ValueError(f"matching_losses: {name} must be int64 {list(distances.shape)}, {came(x)}")
        if x.device != distances.device:
            raise ValueError(
                f"matching_losses: {name} must be on the distances' device {distances.device}, got {x.device}"
            )
    if num_stuff < 0 or max_instances < 1 or num_features < 1:
        raise ValueError(
            "matching_losses: num_stuff must be at least 0, max_instances and num_features at least 1, "
            f"got {num_stuff}, {max_instances}, {num_features}"
        )
    images, num_slots = distances.shape
    if num_slots < num_stuff or (num_slots - num_stuff) % max_instances:
        raise ValueError(
            f"matching_losses: distances must have {num_stuff} slots and a multiple of {max_instances}, "
            f"{came(distances)}"
        )
    library.require("matching_losses", distances.device)
    return torch.ops.simfast.matching_losses.default(
        distances, rows, rings, num_stuff, max_instances, num_features * images
    )


def _save_for_backward(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, rows, rings, *ctx.sizes = inputs
    ctx.save_for_backward(rows, rings)


def _backward(ctx, grad_stuff: Tensor, grad_instances: Tensor) -> tuple[Tensor | None, ...]:
    grad = torch.ops.simfast.matching_losses_backward.default(
        grad_stuff, grad_instances, *ctx.saved_tensors, *ctx.sizes
    )
    return grad, None, None, None, None, None


def _no_second_backward(ctx, *grads: Tensor) -> None:
    raise RuntimeError("matching_losses: can be differentiated once, got a request for the second derivative")


if library.available():

    @torch.library.register_fake("simfast::matching_losses")
    def _(
        distances: Tensor, rows: Tensor, rings: Tensor, num_stuff: int, max_instances: int, divisor: int
    ) -> tuple[Tensor, Tensor]:
        return distances.new_empty(()), distances.new_empty(())

    @torch.library.register_fake("simfast::matching_losses_backward")
    def _(
        grad_stuff: Tensor,
        grad_instances: Tensor,
        rows: Tensor,
        rings: Tensor,
        num_stuff: int,
        max_instances: int,
        divisor: int,
    ) -> Tensor:
        return grad_stuff.new_empty(rows.shape)

    torch.library.register_autograd("simfast::matching_losses", _backward, setup_context=_save_for_backward)
    torch.library.register_autograd("simfast::matching_losses_backward", _no_second_backward)
