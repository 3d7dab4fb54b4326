"""What a run says of itself while it trains: a bar on a terminal, a line in the log whenever its losses are read."""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from simfast.config import Config
from simfast.runtime import distributed
from simfast.runtime.console import Progress
from simfast.runtime.environment import peak_memory

log = logging.getLogger("simfast")
# On the bar, where every column counts.
SHORT = {"seg_target": "tgt", "instance": "inst"}
SMALLEST_BAR = 5


class TrainingProgress(Progress):
    """The bar of a run, and its lines. Evaluations count neither as training nor as steps, but to the time left.

    Args:
        config: its settings.
        first: the step it continues from.
        device: where it computes.
    """

    line_seconds = float("inf")  # its lines come with the losses

    def __init__(self, config: Config, first: int, device: torch.device):
        self._config, self._device = config, device
        self._images = config.batch_size * (1 + config.uses_target) * distributed.size()
        self._losses: dict[str, str] = {}
        self._look: dict[str, str] = {}
        self._read_at, self._read_step, self._apart = time.monotonic(), first, 0.0
        self._evaluation, self._done = 0.0, False
        super().__init__(total=config.steps, initial=first, unit="step", bar_format="{bar}{text}")

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context of an evaluation, and of the checkpoint that comes with it."""
        began = time.monotonic()
        yield
        self._evaluation = time.monotonic() - began
        self._apart += self._evaluation
        self.unpause()

    def say(self, step: int, losses: dict[str, float]) -> None:
        """Show the mean losses of the steps since the last time, as they were read just now.

        Args:
            step: steps done.
            losses: by name.
        """
        now = time.monotonic()
        seconds = max(now - self._read_at - self._apart, 1e-9)
        rate = (step - self._read_step) / seconds
        self._read_at, self._read_step, self._apart = now, step, 0.0
        self._losses = {SHORT.get(name, name): _short(value) for name, value in losses.items()}
        self.refresh()
        means = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        pace = f"{rate * self._images:.3g} images/s, {self._left(step, rate)} left"
        text = f"step {step}/{self.total}: {means}; {pace}, {peak_memory(self._device) / 1e9:.1f} GB"
        log.info("%s", text, extra={"on_bar": not self.disable})

    def show(self, name: str, value: float | None) -> None:
        """Show what an evaluation found, as the mean IoU, in [0, 1], from now on."""
        self._look = {name: "-" if value is None else f"{100 * value:.1f}"}
        self._done = self.n >= self.total

    def _left(self, step: int, rate: float | None) -> str:
        if not rate:
            return "?"
        every, steps = self._config.eval_every, self._config.steps
        evaluations = 0 if self._done else -(-steps // every) - step // every
        return tqdm.format_interval((steps - step) / rate + evaluations * self._evaluation)

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's, with `text`: step, time left, and from the left as many losses as fit into the terminal's width."""
        values = super().format_dict
        average = (values["n"] - (values["initial"] or 0)) / (values["elapsed"] or 1)
        text = f" {self.n}/{self.total} {self._left(self.n, values['rate'] or average)}"
        room = (values["ncols"] or 80) - SMALLEST_BAR
        for name, value in (self._losses | self._look).items():
            part = f" {name} {value}"
            if len(text) + len(part) > room:
                break
            text += part
        return values | {"text": text}


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
