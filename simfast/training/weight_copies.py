"""16-bit copies of the weights that convolutions read: filled once a step, their gradients added to the parameters'."""

import contextlib
import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class WeightCopies:
    """Twins of networks that share every tensor but weights and biases of convolutions, which are 16-bit copies.

    Autocast rounds each weight in every pass of a step, and turns each of its gradients back; here both are done for
    all of them together, in a few launches. What is computed is the same: the parameters stay float32, and each
    pass' gradient, which a 16-bit convolution gives in 16 bits, is added to theirs in float32.

    Args:
        networks: on their device already, in their layout; parameters that are frozen now have no copy.
        dtype: float16 or bfloat16.

    Attributes:
        twins: by network.
        in_use: whether a step is under way, in which the twins are what runs.
    """

    def __init__(self, networks: Iterable[nn.Module], dtype: torch.dtype):
        self.in_use = False
        self.twins: dict[nn.Module, nn.Module] = {}
        self._pairs: dict[nn.Module, list[tuple[Tensor, nn.Parameter]]] = {}
        for network in networks:
            convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
            own = [p for module in convolutions for p in module.parameters(recurse=False) if p.requires_grad]
            pairs = [(p, nn.Parameter(torch.empty_like(p, dtype=dtype))) for p in own]
            # A copy of the modules, in which each tensor is replaced by its entry here.
            shared = {id(x): x for x in (*network.parameters(), *network.buffers())}
            self.twins[network] = copy.deepcopy(network, shared | {id(p): twin for p, twin in pairs})
            self._pairs[network] = pairs
        self._every = [pair for pairs in self._pairs.values() for pair in pairs]

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """A step: the copies are the parameters as they are now."""
        with torch.no_grad():
            torch._foreach_copy_([twin for _, twin in self._every], [p for p, _ in self._every])
        self._forget()  # what a step that ended in an error has left
        self.in_use = True
        try:
            yield
        finally:
            self.in_use = False

    def follow(self, network: nn.Module) -> None:
        """Have a network's twin be in its mode, and its copies ask for gradients where the parameters do."""
        if self.twins[network].training != network.training:
            self.twins[network].train(network.training)
        for p, twin in self._pairs[network]:
            twin.requires_grad_(p.requires_grad)

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Move what a backward pass gave the copies to the parameters' gradients."""
        found = [(p, twin.grad) for p, twin in self._every if twin.grad is not None]
        self._forget()
        if not found:
            return
        new = [torch.empty_like(p) for p, _ in found]
        torch._foreach_copy_(new, [grad for _, grad in found])  # foreach sums of two dtypes go one by one
        sums, terms = [], []
        for (p, _), grad in zip(found, new, strict=True):
            if p.grad is None:
                p.grad = grad
            else:
                sums.append(p.grad)
                terms.append(grad)
        if sums:
            torch._foreach_add_(sums, terms)

    def _forget(self) -> None:
        for _, twin in self._every:
            twin.grad = None
