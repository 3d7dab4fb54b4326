"""Rows of the paper's tables, and the runs that they need."""

import dataclasses
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simfast.config import Config
from simfast.config.config import flattened
from simfast.config.yaml_text import read_yaml
from simfast.report.results import read_result

LONGEST = 200
"""Bytes of a row's name in that of its folder, where a seed and what is unfinished come behind it."""

# The modules of Tables 2 and 6, beside what sweeps of Tables 3 and 4 add. "it" is the transfer that the settings name.
ROWS: dict[str, dict[str, Any]] = {
    "source-only": {"method": "source-only"},
    "aa": {"method": "aa"},
    "aa+it": {"method": "aa"},
    "aa+sim": {"method": "aa+sim"},
    "aa+it+sim": {"method": "aa+sim"},
    "aa+sim+ssl": {"method": "aa+sim", "stage": 2},
    "aa+it+sim+ssl": {"method": "aa+sim", "stage": 2},
    "target-only": {"method": "target-only"},
}
WARM_UP = "warm-up"
GROUPS: dict[str, list[str]] = {
    "modules": ["source-only", "aa", "aa+it", "aa+it+sim", "aa+it+sim+ssl", "target-only"],
    "lambda_ci": [f"aa+it+sim,lambda_ci={value}" for value in (0.1, 0.05, 0.01, 0.005, 0.001)],
    "w": [f"aa+it+sim,stuff_rows={value}" for value in (10, 50, 200, 800, 1600)],
}
# What is no row's own setting, nor one for all of them, and what decides it.
DECIDED = dict.fromkeys(("method", "stage", "stage1", "pseudo_labels"), "its name decides it")
DECIDED |= {"seed": "--seeds decides it"} | dict.fromkeys(("out", "resume"), "--out decides it")
# What is no row's own, as other settings follow from it on the command line.
FOR_ALL = {name: f"--{name} decides it for all rows" for name in ("config", "preset", "recipe")}
TRANSFERS = dict.fromkeys(("transfer", "source_images"), "rows with +it have one")
NETWORK = dict.fromkeys(
    ("arch", "weights", "ema", "convention", "head_dilations", "resnet_style"),
    "all rows but target-only start from --warm-up's network",
)


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Attributes:
        row: its name in the table.
        config: its settings; `out` is its folder.
    """

    row: str
    config: Config

    @property
    def result(self) -> Path:
        return self.config.out / "result.json"

    @property
    def done(self) -> bool:
        """Whether it has a result that can be read; see `read_result` for errors."""
        return read_result(self.result) is not None

    @property
    def panel(self) -> Path:
        return self.config.out / f"panel-{self.config.steps:06d}.png"


def plan(rows: list[str], seeds: list[int], config: Config, warm_up: int = 0) -> list[Run]:
    """The runs that rows and seeds need, each after those it builds on.

    Args:
        rows: names of `ROWS` or `GROUPS`, each row with settings of its own behind commas: "aa+sim,lambda_ci=0.1".
        seeds: one run a row each.
        config: settings that all share; `out` is the folder of them all.
        warm_up: steps of source-only training that the rows of a seed share: they start from the network it ends with,
            where a step budget is short. target-only, which sees no source, trains that much longer instead.

    Raises:
        ValueError: no row or no seed; an unknown row or setting; a row's setting that something else decides.
    """
    for name, values in (("rows", rows), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name}: must name at least one, got none")
    names = [row for name in rows for row in GROUPS.get(name, [name])]
    runs: dict[Path, Run] = {}
    for name in dict.fromkeys(names):
        for seed in seeds:
            found = _runs_of(name, seed, config, warm_up)
            for run in _after_warm_up(found, warm_up, config) if warm_up else found:
                runs.setdefault(run.config.out, run)
    return list(runs.values())


def _after_warm_up(runs: list[Run], steps: int, config: Config) -> list[Run]:
    """The runs of a row with the warm-up they start from, or made longer by it."""
    seed = runs[0].config.seed
    if runs[0].config.method == "target-only":
        return [Run(run.row, _longer(run.config, run.config.steps, steps)) for run in runs]
    out = config.out / f"{WARM_UP}-seed{seed}"
    (first,) = _runs_of("source-only", seed, config, steps)
    first = Run(WARM_UP, dataclasses.replace(_longer(first.config, 0, steps), out=out))
    begun = {"weights": out / "last.pt", "ema": False}
    return [first, *(Run(run.row, dataclasses.replace(run.config, **begun)) for run in runs)]


def _longer(config: Config, steps: int, more: int) -> Config:
    return dataclasses.replace(config, steps=steps + more, schedule_steps=config.schedule_steps + more)


def _runs_of(name: str, seed: int, config: Config, warm_up: int) -> list[Run]:
    row, settings = _own_settings(name, warm_up)
    settings = {"stage": 1, "stage1": None, "pseudo_labels": None} | ROWS[row] | settings | {"seed": seed}
    if "+it" not in row:
        settings |= {"transfer": "none", "source_images": None}
    elif config.transfer == "none" and not any(config.source_images) and not TRANSFERS.keys() & settings.keys():
        settings |= {"transfer": "fda"}  # what can be had without a download
    settings["out"] = str(config.out / f"{folder_name(name)}-seed{seed}")
    before = []
    if settings["stage"] == 2:  # it builds on the row without it, which is run once for both
        before = _runs_of(name.replace("+ssl", "", 1), seed, config, warm_up)
        settings["stage1"] = str(before[-1].config.out)
    run = Run(name, Config.from_dict(settings, f"rows: {name}", config))
    if "+it" in row and run.config.transfer == "none" and not any(run.config.source_images):
        rule = "must be fda or lab in a row with +it, or source_images given"
        raise ValueError(f"rows: {name}: transfer {rule}, got 'none'")
    return [*before, run]


def _own_settings(name: str, warm_up: int) -> tuple[str, dict[str, Any]]:
    """A row's name without its own settings, and these.

    Raises:
        ValueError: an unknown row or setting, one twice, or one that something else decides.
    """
    row, *extra = name.split(",")
    if row not in ROWS:
        raise ValueError(f"rows: {row!r} must be one of {', '.join([*ROWS, *GROUPS])}")
    decided = DECIDED | FOR_ALL | ({} if "+it" in row else TRANSFERS)
    decided |= NETWORK if warm_up and row != "target-only" else {}
    where, settings = f"rows: {name}", {}
    for one, _, text in (setting.partition("=") for setting in extra):
        for key, value in flattened({one: _value(name, text)}, where).items():
            if key in decided:
                raise ValueError(f"{where}: {key} must not be set by a row, got {value!r}; {decided[key]}")
            if key in settings:
                raise ValueError(f"{where}: {key} must be given once, got {settings[key]!r} and {value!r}")
            settings[key] = value
    return row, settings


def _value(row: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"rows: {row}: {error}") from error


def folder_name(row: str) -> str:
    """A row's name as that of one folder, whatever its settings hold: paths, or more than a name may be long."""
    plain = re.sub(r"[/\\\x00-\x1f]", "_", row.replace(",", "-"))
    if plain == row.replace(",", "-") and len(os.fsencode(plain)) <= LONGEST:
        return plain
    digest = hashlib.blake2b(os.fsencode(row), digest_size=4).hexdigest()
    return f"{os.fsencode(plain)[:LONGEST].decode(errors='ignore')}-{digest}"
