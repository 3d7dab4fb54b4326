"""The checkpoints of a run: when each is written, what is in it, and what is kept where the run ends in an error."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simfast.config import Config
from simfast.data.loader import DomainLoader
from simfast.models import checkpoint
from simfast.models.checkpoint import BEST, LAST, PREVIOUS
from simfast.runtime import distributed
from simfast.training.failures import explained, retold
from simfast.training.soundness import NotFinite, Soundness
from simfast.training.step import Trainer

log = logging.getLogger("simfast")


class Keeper:
    """Writes what a run needs to go on: last.pt with the one before as previous.pt, and best.pt.

    Args:
        config: the run's settings.
        out: the run's folder.
        command: what --resume is given to go on from its last.pt; see `RunFolder`.
        trainer, loader: what is saved of.
        soundness: tells whether it may be.
        resumed: the checkpoint that the run goes on from, as `checkpoint.load_run` read it.
        facts: what else every checkpoint says of the run.

    Attributes:
        step: steps done, to be set after each.
        last, best: rows of metrics of the last and the best look at the networks, each with its step.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        command: Path,
        trainer: Trainer,
        loader: DomainLoader,
        soundness: Soundness,
        resumed: dict[str, Any] | None,
        facts: dict[str, Any],
    ):
        self._config, self._out, self._command, self._facts = config, out, command, facts
        self._trainer, self._loader, self._soundness = trainer, loader, soundness
        self.step: int = resumed["step"] if resumed else 0
        self.last: dict[str, Any] | None = resumed and resumed["last"]
        self.best: dict[str, Any] | None = distributed.on_lead(find_best, out, resumed) if resumed else None
        # Where nothing is left to do, as with fewer --steps than before, there may be no look to report.
        at_end = self.step == config.steps and (self.best is None or not self._has_looked())
        self._due = bool(resumed and (resumed.get("look_due") or at_end))
        self._best_due = False
        self._spent = resumed.get("seconds", 0.0) if resumed else 0.0  # older checkpoints do not say
        self._started = time.monotonic()
        self._saved = (config.resume, self.step) if resumed else None
        # Going on from an earlier one, what is last.pt until then is no state that this run was in.
        self._previous = PREVIOUS if config.resume is None or config.resume.name == LAST else None

    @property
    def look_is_due(self) -> bool:
        """Whether the networks are still to be looked at after this step, as where an error came between."""
        return self._due

    def seconds(self) -> float:
        """In all parts of the run."""
        return self._spent + time.monotonic() - self._started

    def looked(self, row: dict[str, Any], is_best: bool) -> None:
        """Take up a look's row and save."""
        self.last, self._due = row | {"step": self.step}, False
        if is_best:
            self.best, self._best_due = self.last, True
        self.save(is_best)

    def save(self, is_best: bool) -> None:
        """Write last.pt, and best.pt too where this is it. To be called by all processes.

        Raises:
            NotFinite: the state is none to go on from; the files are as they were.
            OSError: what writing raises.
        """
        self._soundness.require()
        losses = self._soundness.state_dict()
        if distributed.is_lead():
            self._write(is_best, losses)

    @contextlib.contextmanager
    def saving_on_error(self) -> Iterator[None]:
        """Context of all steps, and of what follows the last. Where it ends in an error, the state after the last whole
        step is saved first, unless it is not sound; the error then says in one line what was kept and how to go on."""
        try:
            yield
        except Exception as error:
            told = explained(error, self._config, self._trainer) or error
            kept = self._rescued(error)
            if not isinstance(told, ValueError | OSError):  # a fault of ours, whose traceback tells more
                if kept:
                    log.error("%s", kept)
                raise
            raise retold(told, f"{told}; {kept}" if kept else str(told)) from error

    def _rescued(self, error: Exception) -> str:
        """What is kept, as a sentence."""
        if not distributed.is_lead():
            return ""
        is_new = self._saved is None or self._saved[1] < self.step
        why = ""
        try:
            if is_new and self.step and not isinstance(error, NotFinite):
                if self._trainer.whole and self._soundness.holds():
                    every = self._config.eval_every
                    at_end = self.step == self._config.steps
                    self._due = not self._has_looked() and (self.step % every == 0 or at_end)
                    # Other processes are not asked any more: without theirs, the next means are of fewer steps.
                    losses = self._soundness.state_dict() if distributed.size() == 1 else {}
                    self._write(self._best_due or not self._config.scored, losses)
                else:
                    why = f"the state after step {self.step} is not sound and was not saved; "
        except Exception as failure:  # whatever it is, the first error counts
            again = "" if str(failure) == str(error) else f": {failure}"
            why = f"the state after step {self.step} could not be saved{again}; "
        if self._saved is None:
            return why.removesuffix("; ")
        path, step = self._saved
        given = self._command if path == self._out / LAST else path
        return f"{why}{path} is of step {step}; continue with --resume {given}"

    def _has_looked(self) -> bool:
        return self.last is not None and self.last["step"] == self.step

    def _write(self, is_best: bool, losses: dict[str, Any]) -> None:
        out = self._out
        state = self._trainer.state_dict() | self._facts
        state |= {"step": self.step, "best": self.best, "last": self.last, "config": self._config.to_dict()}
        state |= {"seconds": self.seconds(), "processes": distributed.size(), "random": checkpoint.random_state()}
        state |= {"network": self._trainer.model.settings}  # what "auto" and no head_dilations turned out to be
        state |= {"precision": self._trainer.precision, "look_due": self._due, "bad_files": self._loader.skipped}
        state |= {"losses": losses}
        # A run that is killed between the two goes on from last.pt, which makes up for a best.pt that is missing, but
        # not for an older one; see `find_best`.
        best_first = is_best and (out / BEST).exists()
        if best_first:
            checkpoint.save(out / BEST, state)
            self._saved = (out / BEST, self.step)  # with which last.pt can be done without
        checkpoint.save(out / LAST, state, previous=self._previous)
        self._saved, self._previous = (out / LAST, self.step), PREVIOUS
        if is_best and not best_first:
            checkpoint.save(out / BEST, state)
        self._best_due = self._best_due and not is_best


def find_best(out: Path, resumed: dict[str, Any]) -> dict[str, Any] | None:
    """The row of metrics of the network in best.pt, which may be of a later step than the one to go on from; None where
    there is none any more."""
    path, best = out / BEST, resumed["best"]
    try:
        found = checkpoint.load_run(path)["best"]
    except (ValueError, OSError) as error:
        if best is None:
            return None
        if best["step"] == resumed["step"]:
            checkpoint.save(path, resumed)
            return best
        log.warning("best.pt is lost, and the best is sought anew from step %d on: %s", resumed["step"], error)
        return None
    if found != best and found is not None:
        log.info("%s is of step %d, and stays until there is a better one", path, found["step"])
    return found
