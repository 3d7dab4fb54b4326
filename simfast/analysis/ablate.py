"""Rows of the paper's tables, with seeds: training runs one after the other, and a table of theirs beside ours."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

import simfast
from simfast.config import FREE_ON_RESUME, Config
from simfast.data.parts import arguments_of, open_part
from simfast.report.figures import save_curve
from simfast.report.metrics import read_metrics
from simfast.report.panels import save_comparison
from simfast.runtime.console import Progress
from simfast.runtime.files import write_text

log = logging.getLogger("simfast")
# Ours in a run's folder: what it is to do, and what it prints where several run at a time.
SETTINGS, CONSOLE = "settings.yaml", "console.txt"
# -P: the current folder is the user's, and may hold anything.
TRAINER = (sys.executable, "-P", "-m", "simfast", "train")

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
# mIoU on Cityscapes val, %: Tables 1-6, over 19 classes (GTA5) and 13 (SYNTHIA).
_GTA5 = (36.6, 41.4, 44.9, 46.2, 49.2, 65.1)
_SYNTHIA = (38.6, 45.9, 46.0, 47.1, 52.1, 71.7)
PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("gta5", "resnet101"): dict(zip(GROUPS["modules"], _GTA5, strict=True))
    | dict(zip(GROUPS["lambda_ci"], (43.4, 44.2, 46.2, 45.4, 45.5), strict=True))
    | dict(zip(GROUPS["w"], (45.2, 46.2, 46.1, 45.3, 45.0), strict=True)),
    ("synthia", "resnet101"): dict(zip(GROUPS["modules"], _SYNTHIA, strict=True)),
    ("gta5", "vgg16"): {"aa+it+sim+ssl": 42.4},
}


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
        ValueError: no row or no seed; an unknown row or setting.
    """
    for name, values in (("rows", rows), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name}: must name at least one, got none")
    names = [row for name in rows for row in GROUPS.get(name, [name])]
    runs: dict[Path, Run] = {}
    for name in dict.fromkeys(names):
        for seed in seeds:
            found = _runs_of(name, seed, config)
            for run in _after_warm_up(found, warm_up, config) if warm_up else found:
                runs.setdefault(run.config.out, run)
    return list(runs.values())


def _after_warm_up(runs: list[Run], steps: int, config: Config) -> list[Run]:
    """The runs of a row with the warm-up they start from, or made longer by it."""
    seed = runs[0].config.seed
    longer = {"schedule_steps": steps + config.schedule_steps}
    if runs[0].config.method == "target-only":
        return [Run(run.row, dataclasses.replace(run.config, steps=run.config.steps + steps, **longer)) for run in runs]
    out = config.out / f"{WARM_UP}-seed{seed}"
    (first,) = _runs_of("source-only", seed, config)
    first = Run(WARM_UP, dataclasses.replace(first.config, steps=steps, out=out, **longer))
    rest = [Run(run.row, dataclasses.replace(run.config, weights=out / "last.pt")) for run in runs]
    return [first, *rest]


def _runs_of(name: str, seed: int, config: Config) -> list[Run]:
    row, *extra = name.split(",")
    if row not in ROWS:
        raise ValueError(f"rows: {row!r} must be one of {', '.join([*ROWS, *GROUPS])}")
    settings = {key.replace("-", "_"): yaml.safe_load(value) for key, _, value in (one.partition("=") for one in extra)}
    settings = {"stage": 1, "stage1": None, "pseudo_labels": None} | ROWS[row] | settings | {"seed": seed}
    if "+it" not in row:
        settings |= {"transfer": "none", "source_images": None}
    elif config.transfer == "none" and config.source_images is None and not {"transfer", "source_images"} & {*settings}:
        settings |= {"transfer": "fda"}  # what can be had without a download
    settings["out"] = str(config.out / f"{name.replace(',', '-')}-seed{seed}")
    if settings["stage"] == 1:
        return [Run(name, Config.from_dict(settings, f"rows: {name}", config))]
    # Stage 2 builds on the row without it, which is run once for both.
    before = _runs_of(",".join([row.removesuffix("+ssl"), *extra]), seed, config)
    settings["stage1"] = str(before[-1].config.out)
    return [*before, Run(name, Config.from_dict(settings, f"rows: {name}", config))]


def check_data(runs: list[Run]) -> None:
    """Opens every part of the data that the runs still to do will read: what is missing shows now, not hours later.

    Raises:
        ValueError: the row, and what `open_dataset` has to say.
    """
    for run in runs:
        for part in () if run.result.exists() else arguments_of(run.config):
            try:
                open_part(run.config, part)
            except (ValueError, OSError) as error:
                raise ValueError(f"rows: {run.row}: {error}") from error


def run_all(runs: list[Run], trainer: Sequence[str] = TRAINER, jobs: int = 1) -> list[Run]:
    """Do the runs that have no result yet, continuing those begun; the tables are written anew after each.

    Args:
        runs: what `plan` gave.
        trainer: the command that trains, without its arguments.
        jobs: how many at the same time, as far as they do not build on each other. Above one, what a run prints goes to
            `console.txt` in its folder.

    Returns:
        The runs that failed; those after a failed one are still tried, except those that build on it.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs in progress got it too, and have saved; call again to continue.
        ValueError: jobs below 1; a run begun, or done, with other settings.
    """
    if jobs < 1:
        raise ValueError(f"jobs: must be at least 1, got {jobs}")
    for run in runs:
        _check_settings(run)
    out = runs[0].config.out.parent
    waiting, failed = [run for run in runs if not run.result.exists()], []
    with (
        # A single run draws a bar of its own.
        Progress(
            total=len(runs), desc="ablate", unit="run", initial=len(runs) - len(waiting), disable=jobs == 1
        ) as bar,
        _Processes() as processes,
    ):
        while waiting or processes.running:
            lost = [run for run in waiting if any(other.config.out in _needed(run) for other in failed)]
            failed += lost
            waiting = [run for run in waiting if run not in lost]
            unfinished = {run.config.out for run in [*waiting, *processes.running]}
            ready = [run for run in waiting if not unfinished.intersection(_needed(run))]
            for run in ready[: jobs - len(processes.running)]:
                waiting.remove(run)
                processes.start(run, _command(run, trainer), quiet=jobs > 1)
                log.info("%s, seed %d: %s (%d more to do)", run.row, run.config.seed, run.config.out, len(waiting))
            for run, code in processes.ended():
                if code:
                    _forget_start(run.config.out)
                    where = f"see {run.config.out / CONSOLE}" if jobs > 1 else "its own message is above"
                    log.error("%s, seed %d: failed with exit code %d, %s", run.row, run.config.seed, code, where)
                    failed.append(run)
                bar.update()
                write_tables(runs, out)
    write_tables(runs, out)
    return failed


def _needed(run: Run) -> list[Path]:
    """The folders of the runs that a run builds on."""
    return [path for path in (run.config.stage1, run.config.weights and run.config.weights.parent) if path]


def _command(run: Run, trainer: Sequence[str]) -> list[str]:
    """What begins or continues a run, whose folder and settings file then exist."""
    run.config.out.mkdir(parents=True, exist_ok=True)
    settings, last = run.config.out / SETTINGS, run.config.out / "last.pt"
    write_text(settings, yaml.safe_dump(run.config.portable(), sort_keys=False))
    where = ["--resume", str(last)] if last.exists() else ["--config", str(settings), "--out", str(run.config.out)]
    return [*trainer, *where]


class _Processes:
    """The programs that run, one a run. Within this context Ctrl-C and SIGTERM are handed on to them, and they have all
    the time they need to save: subprocess.run would kill them after a quarter of a second.

    Attributes:
        running: program by run.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> "_Processes":
        self.running: dict[Run, subprocess.Popen] = {}
        self._received = False
        self._before = {number: signal.signal(number, self._hand_on) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None:  # an error of ours
            self._hand_on(signal.SIGTERM)
        for process in self.running.values():
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, run: Run, command: list[str], quiet: bool) -> None:
        if self._received:  # while none was running
            raise KeyboardInterrupt
        # This very package, also where it is used from a checkout without being installed.
        path = os.pathsep.join(filter(None, (str(Path(simfast.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path}
        if not quiet:
            self.running[run] = subprocess.Popen(command, env=environment)
            return
        with open(run.config.out / CONSOLE, "a") as console:
            self.running[run] = subprocess.Popen(command, stdout=console, stderr=console, env=environment)

    def ended(self) -> list[tuple[Run, int]]:
        """The runs that are over, with their exit codes; waits until one is.

        Raises:
            KeyboardInterrupt: a signal stopped them, and all are over.
        """
        over: list[Run] = []
        while self.running and not over:
            time.sleep(0.05)
            over = [run for run, process in self.running.items() if process.poll() is not None]
        codes = [(run, self.running.pop(run).returncode) for run in over]
        # SIGPIPE: whoever read what it printed has gone, and reads nothing of the others either.
        stops = (*self.SIGNALS, signal.SIGPIPE)
        if self._received or any(code in (128 + n, -n) for _, code in codes for n in stops):
            self._hand_on(signal.SIGTERM)
            for process in self.running.values():
                process.wait()
            log.info("stopped; the same command goes on from there")
            raise KeyboardInterrupt
        return codes

    def _hand_on(self, number: int, _frame=None) -> None:
        self._received = True
        for process in self.running.values():
            process.send_signal(number)


def _check_settings(run: Run) -> None:
    """
    Raises:
        ValueError: a run that is there was begun with other settings: one table is never of two kinds of runs.
    """
    path = run.config.out / SETTINGS
    if not path.exists():
        return
    # A setting that did not exist then has its default.
    before, now = Config.from_dict(yaml.safe_load(path.read_text()), str(path)).to_dict(), run.config.to_dict()
    for key, new in now.items():
        old = before[key]
        if run.result.exists() and isinstance(getattr(run.config, key), Path) and old is not None:
            old, new = Path(old).name, Path(new).name  # what a run that is done has read may have moved since
        if old != new and key not in FREE_ON_RESUME - {"steps"}:
            raise ValueError(f"{path}: {key} must stay {before[key]!r} as the run was begun, got {now[key]!r}")


def _forget_start(out: Path) -> None:
    """Removes what is ours of a run that failed before it left anything: it may begin with other settings."""
    if not {path.name for path in out.iterdir()} - {SETTINGS, CONSOLE}:
        (out / SETTINGS).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what it printed stays
            out.rmdir()


def write_tables(runs: list[Run], out: Path) -> None:
    """ablation.json, ablation.md and panel.png of the runs that are done, and curves.png of all that have begun."""
    rows = summarise(runs)
    write_text(out / "ablation.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "ablation.md", table(rows) + "\n")
    curves = {f"{run.row}, seed {run.config.seed}": run.config.out / "metrics.jsonl" for run in runs}
    begun = {name: read_metrics(path) for name, path in curves.items() if path.exists()}
    if begun:
        save_curve(out / "curves.png", begun)
    panels = {run.row: run.panel for run in reversed(runs) if run.result.exists() and run.panel.exists()}
    if panels:
        save_comparison(out / "panel.png", dict(reversed(panels.items())))


def summarise(runs: list[Run]) -> list[dict[str, Any]]:
    """One dictionary a row, figures in percent over its seeds: mean and spread (sample deviation) of last and best
    mIoU, and of last mIoU on the part to choose on where those are of another part (`report_split`); IoU of each class
    at the last step; the gap closed, (row - source-only) / (target-only - source-only), of last mIoU where both are
    there; and the paper's figure where it has one for these data sets and this network."""
    found_of = {run: json.loads(run.result.read_text()) for run in runs if run.result.exists()}
    results = {run: _scores(result) for run, result in found_of.items()}
    rows = []
    for name in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == name]
        found = [results[run] for run in own if run in results]
        config = own[0].config
        row: dict[str, Any] = {"row": name, "trained": config.row, "seeds": [result["seed"] for result in found]}
        for which in ("last", "best"):
            row[which], row[f"{which}_spread"] = _mean_and_spread(result[which]["miou"] for result in found)
        chosen = [found_of[run]["last"]["miou"] for run in own if "report" in found_of.get(run, {})]
        row["chosen_on"], row["chosen_on_spread"] = _mean_and_spread(chosen)
        names = [key for key in (found[0]["last"] if found else {}) if key.startswith("iou/")]
        row["classes"] = {
            key.removeprefix("iou/"): _mean_and_spread(result["last"][key] for result in found)[0] for key in names
        }
        published = PUBLISHED.get((config.source, config.arch), {}) if config.target == "cityscapes" else {}
        row |= {"paper": published.get(name), "recipe": config.recipe, "gap_closed": None}
        row["environments"] = [result["environment"] for result in found]
        rows.append(row)
    last = {row["row"]: row["last"] for row in rows}
    lower, upper = last.get("source-only"), last.get("target-only")
    for row in rows:
        if None not in (lower, upper, row["last"]) and upper != lower:
            row["gap_closed"] = 100 * (row["last"] - lower) / (upper - lower)
    return rows


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """A result whose scores are those of the part that nothing was chosen on, where there is one."""
    return result | result.get("report", {})


def _mean_and_spread(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """In percent, of values in [0, 1]; None where there is no value, or no two for a spread."""
    found = [100 * value for value in values if value is not None]
    return statistics.fmean(found) if found else None, statistics.stdev(found) if len(found) > 1 else None


def table(rows: list[dict[str, Any]]) -> str:
    """`summarise` as Markdown: mIoU of the rows, then IoU of the classes."""

    def number(value: float | None, spread: float | None = None) -> str:
        return "-" if value is None else f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    headers = ["row", "trained", "recipe", "seeds", "last mIoU, %", "best mIoU, %", "gap closed, %", "paper"]
    figures = ["last", "best"]
    if any(row["chosen_on"] is not None for row in rows):
        headers.insert(6, "last, on the part to choose on")
        figures.append("chosen_on")
    body = [
        [
            *(row["row"], row["trained"], row["recipe"], len(row["seeds"])),
            *(number(row[which], row[f"{which}_spread"]) for which in figures),
            *(number(row["gap_closed"]), number(row["paper"])),
        ]
        for row in rows
    ]
    classes = list(dict.fromkeys(name for row in rows for name in row["classes"]))
    by_class = [[name, *(number(row["classes"].get(name)) for row in rows)] for name in classes]
    names = ["IoU, %, last", *(row["row"] for row in rows)]
    tables = [(body, headers), *([(by_class, names)] if classes else [])]
    return "\n\n".join(tabulate(x, headers=h, tablefmt="github", disable_numparse=True) for x, h in tables)
