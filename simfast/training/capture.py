"""A function of tensors on a GPU as one CUDA graph: captured at its first call, replayed from then on."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

Inputs = Sequence[Tensor | None]
Results = dict[str, Tensor]
# What is set up in the first calls must not be captured: handles, plans, tuned kernels, Triton's compilations.
WARM_UP_CALLS = 3


class CannotCapture(RuntimeError):
    """The function is none that a CUDA graph can hold, or the inputs are not those of the graph."""


class Captured:
    """Calls a function as one CUDA graph, with the results and the effects of calling it directly.

    Args:
        function: changes its state on the GPU in place; the same work at every call, no host read, no random numbers.
        unchanged: a context at whose end everything that the function changes has its value from the beginning, in
            the same storage; the warm-up calls run in it.
    """

    def __init__(self, function: Callable[..., Results], unchanged: Callable[[], AbstractContextManager]):
        self.function, self.unchanged = function, unchanged
        self.replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor | None) -> Results:
        """The function's results, scalars of one dtype; new tensors at every call.

        Raises:
            CannotCapture: at the first call, with everything as it was before it; or for inputs of other shapes.
        """
        if self.replay is None:
            self._capture(inputs)
        if _shapes(inputs) != _shapes(self.inputs):
            raise CannotCapture(
                f"a CUDA graph keeps the first batch's shapes {_shapes(self.inputs)}, got {_shapes(inputs)}"
            )
        for buffer, new in zip(self.inputs, inputs, strict=True):
            if buffer is not None:
                buffer.copy_(new, non_blocking=True)
        self.replay()
        return dict(zip(self.names, self.values.clone().unbind(), strict=True))

    def _capture(self, inputs: Inputs) -> None:
        self.inputs = [None if x is None else x.clone() for x in inputs]
        try:
            with self.unchanged():
                self.replay = record(self._run, WARM_UP_CALLS)
        except Exception as error:
            raise CannotCapture(f"the step does not fit into a CUDA graph: {_story(error)}") from error

    def _run(self) -> None:
        results = self.function(*self.inputs)
        self.names, self.values = list(results), torch.stack(list(results.values()))


def record(run: Callable[[], None], warm_up_calls: int) -> Callable[[], None]:
    """Calls run on a stream of its own, then captures one more call there. Returns what replays that one."""
    # Autograd accumulates a gradient on the stream where it first met the parameter, and a capture must not leave its
    # own: hence one stream for both, and no graph of autograd alive in between.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up_calls):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    # The outer context: where a capture ends in an error, torch leaves its stream the current one.
    # thread_local: a loader's thread may pin memory meanwhile, which the default mode takes for an error.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    torch.cuda.empty_cache()  # what the warm-up held: the graph has a pool of its own
    return graph.replay


def _story(error: BaseException) -> str:
    """What went wrong first, and what it led to: an invalid capture ends in an error that does not say why."""
    first = error
    while (before := first.__cause__ or (None if first.__suppress_context__ else first.__context__)) is not None:
        first = before
    return str(error) if first is error else f"{first} (then: {error})"


def _shapes(inputs: Inputs) -> list[str]:
    return ["none" if x is None else f"{x.dtype} {list(x.shape)}".removeprefix("torch.") for x in inputs]
