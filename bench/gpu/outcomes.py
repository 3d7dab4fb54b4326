"""A pytest plugin: every test's outcome is on disk as soon as it is known (`-p bench.gpu.outcomes`)."""

import os
from pathlib import Path

from bench import rows


def _write(case: str, **values) -> None:
    rows.append(
        Path(os.environ["SIMFAST_BENCH_ROWS"]), {"part": os.environ["SIMFAST_BENCH_PART"], "case": case, **values}
    )


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        reason = {} if report.outcome == "passed" else {"reason": _reason(report)}
        _write(report.nodeid, test=report.outcome, seconds=round(report.duration, 3), **reason)


def pytest_collectreport(report) -> None:
    if report.failed:
        _write(report.nodeid, test="failed", seconds=0, reason=_reason(report))


def _reason(report) -> str:
    """The last line of what went wrong, or why it was skipped."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return " ".join(crash.message.split())[:300]
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    marked = [line[1:] for line in text.splitlines() if line.startswith("E ")]
    return " ".join((marked[-1] if marked else text).split())[-300:]
