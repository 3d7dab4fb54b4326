"""What numbers the settings may have, each with the reason for its upper end."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """
    Attributes:
        low, high: the ends; a setting of several numbers has them for each.
        why: why it may be no more.
        above: whether `low` itself is too little.
        below: whether `high` itself is too much.
        most: numbers that a setting of several may have.
    """

    low: int
    high: float
    why: str = ""
    above: bool = False
    below: bool = False
    most: int | None = None

    def breach(self, value: Any) -> str | None:
        """The rule that a value breaks, for an error; None where it breaks none."""
        values = value if isinstance(value, tuple | list) else (value,)
        if self.most is not None and len(values) > self.most:
            return f"must be at most {self.most} numbers"
        if not all(isinstance(one, int) or math.isfinite(one) for one in values):
            return "must be a finite number"
        if any(one < self.low or (self.above and one == self.low) for one in values):
            return self._of_low()
        if any(one > self.high or (self.below and one == self.high) for one in values):
            return self._of_high()
        return None

    def _of_low(self) -> str:
        if not self.why:
            return self._of_both()
        if self.low == 0:
            return "must be positive" if self.above else "must not be negative"
        return f"must be at least {self.low}"

    def _of_high(self) -> str:
        return f"must be at most {self.high:,} ({self.why})" if self.why else self._of_both()

    def _of_both(self) -> str:
        return f"must be in {'[('[self.above]}{self.low}, {self.high}{'])'[self.below]}"


_WEIGHT = Bound(0, 10**6, "terms of a loss differ by less")
_RATE = Bound(0, 1000, "no training survives more", above=True)
_SHARE = Bound(0, 1, below=True)
_STEPS = Bound(1, 10**9, "more would take years")
# The longest side of a published picture is a quarter of it.
_SIZE = Bound(32, 16384, "pictures of 16384 x 16384 are 800 MB each", most=2)

BOUNDS: dict[str, Bound] = {
    "seed": Bound(0, 2**63 - 1, "torch's generators take 64 bits"),
    "pseudo_cap": Bound(0, 1, above=True),
    "log_every": _STEPS,
    "eval_every": _STEPS,
    "panel_images": Bound(0, 256, "each is a row of one picture, all of which is in memory"),
    "source_share": Bound(1, 10**6, "a round of the mixture is listed whole"),
    "fda_beta": Bound(0, 0.5, above=True, below=True),
    "source_size": _SIZE,
    "target_size": _SIZE,
    "workers": Bound(0, 1024, "each is a process"),
    "skip_bad_files": Bound(0, 10**6, "each is kept by name"),
    "head_dilations": Bound(1, 2048, "a feature map of a picture of 16384 pixels is as wide", most=16),
    "lambda_seg": _WEIGHT,
    "lambda_adv": _WEIGHT,
    "lambda_ci": _WEIGHT,
    "lambda_ci_stage2": _WEIGHT,
    "lambda_d": _WEIGHT,
    "lambda_mix": _WEIGHT,
    "teacher_decay": _SHARE,
    "confidence": _SHARE,
    "stuff_rows": Bound(1, 100_000, "each is a vector of some kilobytes, of each class"),
    "max_instances": Bound(1, 10_000, "an image has so many slots for each thing class"),
    "batch_size": Bound(1, 4096, "all images of a step are in memory at once"),
    "steps": _STEPS,
    "schedule_steps": _STEPS,
    "lr": _RATE,
    "head_lr_factor": Bound(0, 10**6, "no training survives more", above=True),
    "lr_d": _RATE,
    "power": Bound(0, 100, "the rate would be 0 from the first steps on"),
    "momentum": _SHARE,
    "weight_decay": Bound(0, 1000, "no weight survives more"),
    "betas": _SHARE,
}
