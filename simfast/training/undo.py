"""The buffers of networks as they were before a step that ends in an error."""

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Undo:
    """Context in which an error puts back the buffers of modules: running statistics and banks, megabytes, whose copies
    cost next to nothing beside a step. The copies are made on the device, and no value is read.

    Args:
        modules: whose buffers keep their storage.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] | None = None

    @torch.no_grad()
    def __enter__(self) -> None:
        if self._pairs is None:  # here: the modules are where they stay
            buffers = [buffer for module in self._modules for buffer in module.buffers()]
            # By dtype: a list of several is copied one by one.
            kinds = {buffer.dtype: [x for x in buffers if x.dtype == buffer.dtype] for buffer in buffers}
            self._pairs = [(own, [torch.empty_like(x) for x in own]) for own in kinds.values()]
        for own, kept in self._pairs:
            torch._foreach_copy_(kept, own)

    @torch.no_grad()
    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None:
            with contextlib.suppress(RuntimeError):  # of a device that is broken: the first error counts
                for own, kept in self._pairs:
                    torch._foreach_copy_(own, kept)
