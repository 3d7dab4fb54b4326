"""Several processes that train together, started by `torchrun`: each takes its share of every batch, all hold the same
networks and banks.

In a process of its own every function here does nothing, or hands back what it was given. Collectives on the CPU go
through gloo, those on GPUs through NCCL.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in a step or an evaluation before it takes them for lost."""
PATIENCE = timedelta(days=2)
"""The same where one process alone has work to do, as on pseudo labels."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "Timed out")
_patient: dist.ProcessGroup | None = None


def rank() -> int:
    """Number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_lead() -> bool:
    """Whether this is the process that writes: the one of rank 0."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did; gives this one's device.

    Args:
        device: of which kind.

    Raises:
        ValueError: fewer GPUs than processes on this machine.
        SystemExit: another process was lost, whose own message says why.
    """
    global _patient
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= there:
            raise ValueError(f"device: must be a GPU for each process of a machine, got {there} for process {number}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield device
    except RuntimeError as error:  # torch has no one exception for it
        if any(words in str(error) for words in _LOST):
            raise SystemExit(
                f"simfast train: rank {rank()}: another process was lost; its own message says why"
            ) from error
        raise
    # Not after an error: there may be others still to wait for, who are waiting for this one.
    dist.barrier(_patient)
    dist.destroy_process_group()


def on_lead(function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments), called by rank 0 alone; all get its result, and wait for it however long it takes."""
    if size() == 1:
        return function(*arguments)
    result = [function(*arguments) if is_lead() else None]
    dist.broadcast_object_list(result, src=0, group=_patient, device=torch.device("cpu"))
    return result[0]


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier(_patient)


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place."""
    if size() > 1:
        dist.all_reduce(x)
    return x


def lowest(x: Tensor) -> Tensor:
    """The lowest x of all processes, element by element, in place."""
    if size() > 1:
        dist.all_reduce(x, dist.ReduceOp.MIN)
    return x


def of_each(x: Tensor) -> Tensor:
    """x [...] of each process, [size, ...] in the order of their ranks, the same in every process."""
    if size() == 1:
        return x[None]
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def highest(value: int) -> int:
    """The highest of all processes' values. Waits on the host, not on a GPU."""
    if size() == 1:
        return value
    x = torch.tensor(value)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return int(x)


# ----------------------------------------------------------------------------------------------------------------------
# In a step
# ----------------------------------------------------------------------------------------------------------------------


def averaging(network: nn.Module, compiled: nn.Module) -> nn.Module:
    """What to call in a network's place, so that its gradients become their mean over the processes; its parameters
    become rank 0's.

    Call it within `backward_follows`, which says when. Batch norms see each process's own images, and keep statistics
    of them alone; see `share_buffers`.

    Args:
        network: convolutions, the first parameter being the first one's weight; gives logits, or features and logits.
        compiled: what to call in one process: the network, or what torch.compile made of it.
    """
    if size() == 1:
        return compiled
    called = DistributedDataParallel(network)
    # Not as an argument: it has another name from torch 2.13 on.
    called.broadcast_buffers = False
    # After its first backward pass it lays the gradients out anew, and three or more are then summed in another order.
    # One pass before the training, so that a resumed run has a straight one's layout from its first step on.
    weight, training = next(network.parameters()), network.training
    network.eval()
    called(weight.new_zeros(1, weight.shape[1], 64, 64))[-1].sum().backward()
    network.train(training)
    network.zero_grad(set_to_none=True)
    called.module = compiled
    return called


def backward_follows(network: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Context of a forward pass of `averaging`'s network.

    Args:
        network: what `averaging` gave.
        last: whether its backward pass is the step's last one through the network: it is the one that averages the
            gradients, with those that the passes before have added up.
    """
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return contextlib.nullcontext()


def mean_over_all(loss: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """A loss to take in the place of a mean over labelled pixels: its mean over the processes is the mean over all
    their labelled pixels.

    Args:
        loss: scalar, the mean over this process's pixels that are not `ignore`; 0 where there are none.
        labels: integer, any shape, what the mean is over.
    """
    if size() == 1:
        return loss
    count = (labels != ignore).sum()
    return loss * (size() * count / total(count.clone()).clamp(min=1))


def gather(means: Tensor, rings: Tensor) -> tuple[Tensor, Tensor]:
    """What all processes have to remember, in the order of their ranks: for `StuffInstanceMatching`.

    Args:
        means: float32 [B, S, C].
        rings: int64 [B, S].

    Returns:
        [size * B, S, C] and [size * B, S], the same in every process.
    """
    return of_each(means).flatten(0, 1), of_each(rings).flatten(0, 1)


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Gives all processes the buffers of rank 0: running statistics, before they are evaluated together.

    No more often than that, as training with batch statistics does not read them.
    """
    if size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)
