"""The setting `engines`: how a GPU computes each convolution of the segmentation network, timed once and kept."""

import json
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from simfast.config import Config
from simfast.models.convolution_ways import DIRECTIONS, WAYS, Geometry, compute, convolve
from simfast.runtime import distributed
from simfast.runtime.files import write_text

NAME = "engines.json"
"""In the run's folder."""
WORTH = 0.95
"""Of the usual way's time, what another may take at most to be chosen: noise is not to decide."""
WARM_UP, REPETITIONS = 3, 11
DELAY = 2_000_000
"""Cycles of the device, about a millisecond, in which the host gets ahead of it."""

log = logging.getLogger("simfast")


def measured_engines(config: Config, mode: str, device: torch.device) -> "Engines | None":
    """What chooses how convolutions are computed; None where torch does.

    Raises:
        ValueError: measured without a GPU, with compiled networks, or in several processes, which would differ.
    """
    if config.engines == "torch":
        return None
    for is_so, where in (
        (device.type != "cuda", "without a GPU"),
        ("compile" in mode, f"with step_mode {mode}"),
        (distributed.size() > 1, "with several processes"),
    ):
        if is_so:
            raise ValueError(f"engines: must be torch {where}, got {config.engines!r}")
    return Engines(environment(device))


def environment(device: torch.device) -> dict[str, Any]:
    """What measured times and chosen ways are of."""
    gpu = torch.cuda.get_device_name(device)
    return {"gpu": gpu, "torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}


def milliseconds(run: Callable[[], Any]) -> float:
    """Of a call on the current GPU: the median of several, without what the host takes."""
    for _ in range(WARM_UP):
        run()
    torch.cuda._sleep(DELAY)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPETITIONS)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    events[-1][1].synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


class Engines(TorchFunctionMode):
    """A context in which convolutions are computed by the ways found to be fastest, as are their gradients, wherever
    those are asked for. A convolution's ways are timed where it is met first: in the first step, but not in a capture.

    Args:
        environment: what times are of; a file of another one is not used.
        time: of a call, in any unit.
    """

    def __init__(self, environment: dict[str, Any], time: Callable[[Callable[[], Any]], float] = milliseconds):
        super().__init__()
        self._environment, self._time = environment, time
        self._layers: dict[str, dict[str, Any]] = {}
        self._path: Path | None = None
        self._new = False

    def keep_in(self, path: Path, *found: Path) -> None:
        """Goes on with the choice of the first of these files that is there, and writes its own to `path`.

        One of another GPU, torch or cuDNN is passed over with a warning: there its ways need not be fast, and other
        bits would come of them all the same; what is missing is then measured.

        Raises:
            ValueError: a file that is none of these; names it.
        """
        self._path = path
        there = next((file for file in found if file.is_file()), None)
        if there is None:
            return
        content = _read(there)
        of = {name: content.get(name) for name in self._environment}
        if of != self._environment:
            log.warning("engines: measured anew, %s is of %s, this is %s", there, of, self._environment)
            return
        self._layers = content["layers"]
        self._new = there != path

    def save(self) -> None:
        """Writes what was found since the last time, whole or not at all."""
        if self._new and self._path is not None:
            write_text(self._path, json.dumps(self._environment | {"layers": self._layers}, indent=1) + "\n")
            self._new = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.conv2d:
            return self._convolution(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1
    ) -> Tensor:
        if groups != 1 or x.dim() != 4 or isinstance(padding, str):
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        stride, padding, dilation = ((n, n) if isinstance(n, int) else n for n in (stride, padding, dilation))
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # which does not look into a function of one's own
            x, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (x, weight))
        out = convolve(x, weight, stride, padding, dilation, self._run)
        return out if bias is None else out + bias.to(out.dtype)[:, None, None]

    def _run(self, direction: str, geometry: Geometry, inputs: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        layer = self._layers.setdefault(str(geometry), {})
        if direction not in layer:
            layer[direction] = self._measured(direction, geometry, inputs)
            self._new = True
        way = layer[direction]["way"]
        if way not in geometry.ways:
            allowed = " or ".join(geometry.ways)
            raise ValueError(f"engines: {NAME} must have {allowed} for {direction} of {geometry}, got {way!r}")
        return compute(way, direction, geometry, *inputs)

    def _measured(self, direction: str, geometry: Geometry, inputs: tuple[Tensor, Tensor, Tensor | None]) -> dict:
        if inputs[0].is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"engines: {direction} of {geometry} must be timed before a capture, is met first in one"
            )
        times = {}
        for way in geometry.ways:
            try:
                times[way] = self._time(lambda way=way: compute(way, direction, geometry, *inputs))
            except torch.OutOfMemoryError:
                if way == geometry.ways[0]:
                    raise
        usual, fastest = geometry.ways[0], min(times, key=times.get)
        return {"way": fastest if times[fastest] < WORTH * times[usual] else usual, "ms": times}


def _read(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: naming the file.
    """
    try:
        content = json.loads(path.read_text())
        for layer in content["layers"].values():
            for direction, found in layer.items():
                if direction not in DIRECTIONS or found["way"] not in WAYS:
                    raise ValueError(f"{direction}: {found}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = "must hold what a step measured; remove it, which has it measured anew, or give --engines torch"
        raise ValueError(f"engines: {path} {rule}, got {error!r}") from error
    return content
