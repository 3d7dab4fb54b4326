"""The optimisers of a step: fused, learning rates on the device, state that is complete before the first step."""

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from simfast.config import Config


def sgd(config: Config, model: nn.Module) -> SGD:
    """Of the segmentation network (section 5.2); its groups are "backbone" and "head"."""
    groups = model.parameter_groups(config.lr, config.head_lr_factor)
    options = {"momentum": config.momentum, "nesterov": config.nesterov, "weight_decay": config.weight_decay}
    return SGD(groups, fused=True, **options)


def adam(config: Config, discriminator: nn.Module) -> Adam:
    """Of the discriminator (section 5.2)."""
    return Adam(discriminator.parameters(), lr=config.lr_d, betas=config.betas, fused=True)


def settle(optimizer: Optimizer, rates: list[Tensor]) -> None:
    """Options and state as a step needs them on the parameters' device, whatever a checkpoint brought.

    The state is in the parameters' layout and complete before the first step: a CUDA graph must not create it, and a
    first fp16 step that the scaler skips must not leave it unset.

    Args:
        optimizer: one of the two above.
        rates: float32 scalars on the device, one for each group; a step reads them there.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group |= {"lr": rate, "fused": True, "foreach": False}
        names = ["momentum_buffer"] if group.get("momentum") else []
        if isinstance(optimizer, Adam):
            group["capturable"] = rate.is_cuda
            names = ["exp_avg", "exp_avg_sq"]
        for p in group["params"]:
            state = optimizer.state[p]
            for name in names:
                stored, state[name] = state.get(name), torch.zeros_like(p, requires_grad=False)
                if stored is not None:
                    state[name].copy_(stored)
            if isinstance(optimizer, Adam):
                stored = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device=p.device)
                state["step"] = stored.clone()
