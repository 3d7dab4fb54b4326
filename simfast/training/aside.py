"""Work that a step needs only later, on a stream beside it; part of the step's CUDA graph as well."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Aside:
    """Runs a function beside what follows, on a GPU; elsewhere in its turn.

    Memory: what the function reads is held until `join`, even if an error comes between. What it allocates comes from
    the side stream's own share of the allocator, which hands a block out again only to a later `run`; that one waits
    first for all that was asked of the current stream before it, the last use of the earlier results included. So
    neither stream can overwrite what the other still reads, and no stream has to be recorded with the allocator. In a
    capture the same holds within the graph, whose forks and joins these waits become.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._read: list[tuple] = []  # by what is not joined

    def run(self, function: Callable[..., T], *arguments) -> T:
        """What the function returns; its tensors may be used after `join`."""
        if self._stream is None:
            return function(*arguments)
        self._read.append(arguments)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            return function(*arguments)

    def join(self) -> None:
        """From here on the current stream sees what was run beside it. To be called after every `run`, and after an
        error too: a graph cannot end while a part of it is not joined. Where nothing is beside, it does nothing.
        """
        if self._read:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._read.clear()
