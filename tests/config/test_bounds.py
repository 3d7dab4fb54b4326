"""Numbers of the settings: every one has its bounds, and what is out of them is told in a line."""

import dataclasses
import math
import re

import pytest
from running import settings_of

from simfast.config import Config
from simfast.config.bounds import BOUNDS

NUMBERS = {
    name for name, field in Config.__dataclass_fields__.items() if re.search(r"\b(int|float)\b", str(field.type))
}


def test_every_number_has_a_bound():
    assert BOUNDS.keys() == NUMBERS
    for name, bound in BOUNDS.items():
        value = getattr(Config(), name)
        count = 1 if name == "head_dilations" else len(value) if isinstance(value, tuple) else None
        of = (lambda one: (one,) * count) if count else (lambda one: one)  # noqa: B023
        for bad in (bound.high + 1, bound.low - 1, 10**400, -(10**400), math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=rf"^{name}: must .*, got ") as told:
                dataclasses.replace(Config(), **{name: of(bad)})
            assert str(told.value).count("\n") == 0
        if not bound.above:
            dataclasses.replace(Config(steps=1, nesterov=False), **{name: of(bound.low)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lr -1", "lr: must be positive, got -1.0"),
        ("--lr nan", "lr: must be a finite number, got nan"),
        ("--lambda-adv inf", "lambda_adv: must be a finite number, got inf"),
        ("--workers 1000000", "workers: must be at most 1,024 (each is a process), got 1000000"),
        (
            "--seed 1180591620717411303424",
            "seed: must be at most 9,223,372,036,854,775,807 (torch's",
        ),
        ("--batch-size 1000000000000000000", "batch_size: must be at most 4,096 (all images of a step are in memory"),
        ("--betas 0.9 1.5", "betas: must be in [0, 1), got (0.9, 1.5)"),
    ],
)
def test_a_number_out_of_bounds_is_told_in_one_line(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as told:
        settings_of(arguments.split())
    assert len(str(told.value)) < 150
