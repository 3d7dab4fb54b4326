"""The optimisers of a step: fused, learning rates on the device, state that is complete before the first step."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from simfast.config import Config


def poly(base: float, step: int, config: Config) -> float:
    """Learning rate at a step of the poly schedule (section 5.2)."""
    return base * (1 - step / config.schedule_steps) ** config.power


class ListedSGD(SGD):
    """SGD that updates a group's parameters `updates` times in a step, 1 where the group does not say.

    So does torch's own with parameters that stand several times in a group: each update has the same gradient g, the
    weight decay of what the one before left, and the one momentum: m = mu m + g + wd p, p = p - lr m, and again. After
    many steps of one gradient, n updates have moved n times as far as one. (torch before 1.5 also left the decay in the
    gradient, so that the second update had it twice; today's begins the very first step without the momentum between.)
    """

    def step(self, closure: None = None) -> None:
        super().step(closure)
        groups, scale = self.param_groups, getattr(self, "grad_scale", None)
        if scale is not None:
            self.grad_scale = None  # the first update has divided the gradients by it, in place
        try:
            for done in range(1, max(group.get("updates", 1) for group in groups)):
                self.param_groups = [group for group in groups if group.get("updates", 1) > done]
                super().step()
        finally:
            self.param_groups = groups
            if scale is not None:
                self.grad_scale = scale


def sgd(config: Config, model: nn.Module) -> SGD:
    """Of the segmentation network (section 5.2); its groups are "backbone" and "head".

    With `config.backbone_updates` "listed" the backbone's parameters are groups by how often they are updated.
    """
    groups = model.parameter_groups(config.lr, config.head_lr_factor)
    options = {"momentum": config.momentum, "nesterov": config.nesterov, "weight_decay": config.weight_decay}
    if config.backbone_updates == "once":
        return SGD(groups, fused=True, **options)
    backbone, head = groups
    listed = model.listings()
    counts = sorted({listed[p] for p in backbone["params"]})
    parts = [
        {**backbone, "params": [p for p in backbone["params"] if listed[p] == count], "updates": count}
        for count in counts
    ]
    return ListedSGD([*parts, head], fused=True, **options)


def adam(config: Config, discriminator: nn.Module) -> Adam:
    """Of the discriminator (section 5.2)."""
    return Adam(discriminator.parameters(), lr=config.lr_d, betas=config.betas, fused=True)


class Optimizers:
    """Both networks' optimisers, and in fp16 the scaler of their losses.

    Args:
        config: the run's settings.
        model, discriminator: the networks, on the device already; no discriminator, no optimiser of it.
        precision: "fp32", "bf16" or "fp16".
        device: where the networks are.

    Attributes:
        segmentation, discriminator: the two; None where there is none.
        scaler: None but in fp16.
    """

    def __init__(
        self, config: Config, model: nn.Module, discriminator: nn.Module | None, precision: str, device: torch.device
    ):
        self._config = config
        self.segmentation = sgd(config, model)
        self.discriminator = None if discriminator is None else adam(config, discriminator)
        bases = [group["lr"] for optimizer in self._all() for group in optimizer.param_groups]
        # On the device, where a captured step finds the rate of the day.
        self._rates = [(torch.zeros((), device=device), base) for base in bases]
        self.settle()
        self.scaler = None
        if precision == "fp16":
            self.scaler = torch.amp.GradScaler(device.type)
            self.scaler.scale(torch.zeros((), device=device))  # creates its tensors, which a graph must not

    def parts(self) -> dict[str, Any]:
        """What of this a checkpoint holds, by its keys there."""
        parts = {"optimizer": self.segmentation, "optimizer_d": self.discriminator, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}

    def settle(self) -> None:
        """`settle` for both; to be called when their state has been loaded."""
        rates = iter(self._rates)
        for optimizer in self._all():
            settle(optimizer, [next(rates)[0] for _ in optimizer.param_groups])

    def set_rates(self, step: int) -> None:
        """The learning rates of a step, counted from 0."""
        for rate, base in self._rates:
            rate.fill_(poly(base, step, self._config))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the step."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> None:
        """Update both networks with the gradients that they have."""
        for optimizer in self._all():
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)  # skipped on the device where a gradient is not finite
        if self.scaler is not None:
            self.scaler.update()

    @contextlib.contextmanager
    def unchanged(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Puts back at its end whatever steps have changed of modules, optimisers and scaler, in the same storage."""
        tensors = [x for module in modules for x in (*module.parameters(), *module.buffers())]
        tensors += [x for optimizer in self._all() for state in optimizer.state.values() for x in state.values()]
        values = [x.detach().to("cpu", copy=True) for x in tensors]
        scale = self.scaler and self.scaler.state_dict()
        try:
            yield
        finally:
            with torch.no_grad():
                for x, value in zip(tensors, values, strict=True):
                    x.copy_(value)
            if self.scaler:
                # Forgets which optimisers it has stepped since its last update, too: a second step would be an error.
                self.scaler.update(scale["scale"])
                self.scaler.load_state_dict(scale)
                for optimizer in self._all():  # what it leaves there where an update ends in an error
                    for name in ("grad_scale", "found_inf"):
                        vars(optimizer).pop(name, None)

    def _all(self) -> list[Optimizer]:
        return [optimizer for optimizer in (self.segmentation, self.discriminator) if optimizer is not None]


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
