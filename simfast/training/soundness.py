"""Whether a run is still finite: its losses, which are read now and then, and what a checkpoint would hold of it."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from simfast.config import Config
from simfast.runtime import distributed
from simfast.training.step import Trainer

log = logging.getLogger("simfast")
# What may help, by the loss that was the first; the learning rate may help whatever it was.
REMEDIES = {
    "adv": "a lower --lambda-adv or --lr-d",
    "d": "a lower --lr-d",
    "stuff": "a lower --lambda-ci",
    "instance": "a lower --lambda-ci",
    "mix": "a lower --lambda-mix",
}
# How many times the loss of a guess a segmentation loss is that no training comes back from.
WORSE_THAN_GUESSES = 30
# Far below what any finite gradient asks for.
LOWEST_SCALE = 1.0


class NotFinite(ValueError):
    """A loss, or what was to be saved, is not finite. The checkpoints are from before."""


class Soundness:
    """Adds up the losses of a run's steps between two readings, and remembers on the device since when each has not
    been finite.

    Args:
        config: the run's settings.
        trainer: its networks.
        first: the step that it continues from.
        begun: `state_dict` of then; empty: nothing was added up.
    """

    def __init__(self, config: Config, trainer: Trainer, first: int, begun: dict[str, Any]):
        self._config, self._trainer = config, trainer
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._since = self._step = first
        self._scale = None if trainer.scaler is None else trainer.scaler.state_dict()["scale"]
        if begun:
            self._names, self._since, self._scale = list(begun["sums"]), begun["since"], begun["scale"]
            own = [sums[distributed.rank()] for sums in begun["sums"].values()]
            self._sums = torch.tensor(own, dtype=torch.float32, device=trainer.device)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """The losses of a step, float32 scalars on the device; nothing is read.

        Args:
            step: steps made.
            losses: by name, the same ones each time.
        """
        values = torch.stack(list(losses.values()))
        if self._first_bad is None:
            self._names, self._first_bad = list(losses), torch.full_like(values, torch.inf, dtype=torch.float64)
        self._first_bad = torch.where(values.isfinite(), self._first_bad, self._first_bad.clamp(max=step))
        self._sums, self._step = values + (0 if self._sums is None else self._sums), step

    def read(self) -> dict[str, float]:
        """Mean losses of the steps since the last reading, over all processes: the one read from the device.

        Raises:
            NotFinite: one of them is not, or in fp16 no step counts any more; names the first.
        """
        steps = self._step - self._since
        sums = distributed.total(self._sums) / (steps * distributed.size())
        scaler = self._trainer.scaler
        scale = [] if scaler is None else [scaler._scale.to(sums.dtype).reshape(1)]
        values = torch.cat([sums, *scale]).tolist()
        means = dict(zip(self._names, values[: len(self._names)], strict=True))
        if not all(map(math.isfinite, means.values())):
            raise NotFinite(self._story())
        if means.get("seg") == 0:
            log.warning("seg is 0: in steps %d to %d no pixel of the labels is of a class", self._since + 1, self._step)
        guess = math.log(self._trainer.model.num_classes)
        if means.get("seg", 0) > WORSE_THAN_GUESSES * guess:
            what = "where guessing gives %.2g: the network is not learning"
            log.warning(f"seg is %.3g, {what}; %s", means["seg"], guess, self._remedy(()))
        if scale:
            self._require_steps(values[-1], steps)
        self._sums, self._since = None, self._step
        return means

    def require(self) -> None:
        """To be called before a checkpoint is written, by all processes. One read from the device.

        Raises:
            NotFinite: the losses since the last reading are not finite, or a tensor that a checkpoint holds is not.
        """
        bad = self._bad()
        counts = torch.stack([flag.long() for flag in bad.values()])
        found = [name for name, count in zip(bad, distributed.total(counts).tolist(), strict=True) if count]
        if found:
            raise NotFinite(self._story() if found[0] == "losses" else self._story_of(found[0]))

    def state_dict(self) -> dict[str, Any]:
        """What is added up since the last reading, for a checkpoint: {"since": step, "scale": of fp16 then, "sums": of
        each process, by loss}; empty where it is nothing. To be called by all processes. One read from the device."""
        if self._sums is None:
            return {}
        sums = distributed.of_each(self._sums).T.tolist()
        return {"since": self._since, "scale": self._scale, "sums": dict(zip(self._names, sums, strict=True))}

    def holds(self) -> bool:
        """What `require` looks at, of this process alone."""
        return not bool(torch.stack(list(self._bad().values())).any())

    # ------------------------------------------------------------------------------------------------------------------

    def _bad(self) -> dict[str, Tensor]:
        """Whether something is not finite, bool scalars on the device by what it is."""
        found = {} if self._sums is None else {"losses": ~self._sums.isfinite().all()}
        kind = self._trainer.device.type
        for part, state in self._trainer.state_dict().items():
            flags = [~tensor.isfinite().all() for tensor in _tensors(state) if tensor.device.type == kind]
            if flags:
                found[part] = torch.stack(flags).any()
        return found

    def _require_steps(self, scale: float, steps: int) -> None:
        """That the scaler of fp16 has let a step of these pass: it halves its scale wherever it does not."""
        before, self._scale = self._scale, scale
        if scale > before * 0.5**steps:
            return
        what = f"steps {self._since + 1} to {self._step} were all left out, as their gradients are not finite in fp16"
        if scale < LOWEST_SCALE:
            raise NotFinite(f"{what}, though the losses are scaled by no more than {scale:g}; {self._remedy(())}")
        log.warning("%s (scale %g now)", what, scale)

    def _story(self) -> str:
        """Which loss went first, when, and what may help."""
        first = dict(zip(self._names, distributed.lowest(self._first_bad).tolist(), strict=True))
        step = min(first.values())
        if math.isinf(step):  # each is finite, and their sum is not
            return f"the losses are too large at step {self._step}; {self._remedy(self._names)}"
        names = [name for name, when in first.items() if when == step]
        later = [f"{name} at step {when:.0f}" for name, when in first.items() if step < when < math.inf]
        what = f"the losses are not finite at step {step:.0f}: {', '.join(names)} first"
        what += f" (then {', '.join(later)})" if later else ""
        what += ", so the network itself is not" if len(names) == len(self._names) > 1 else ""
        return f"{what}; {self._remedy(names)}"

    def _story_of(self, part: str) -> str:
        names = {"model": "the network", "matching": "what is remembered", "teacher": "the mean teacher"}
        what = names.get(part, f"the {part}")
        return f"{what} is not finite after step {self._step}, whose losses still are; {self._remedy(())}"

    def _remedy(self, names: Any) -> str:
        """What to try in another run."""
        tries = [f"a lower --lr ({self._config.lr:g})"]
        tries += ["--precision bf16 or fp32"] if self._trainer.precision == "fp16" else []
        if len(names) < len(self._names):
            tries += dict.fromkeys(REMEDIES[name] for name in names if name in REMEDIES)
        return f"a new run may try {', '.join(tries)}"


def _tensors(state: Any) -> Iterator[Tensor]:
    """The floating tensors in a state, all the way down."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
