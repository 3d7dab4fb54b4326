"""Measurements on disk as soon as they are made: a row is one line of JSON, and a killed run loses none.

A row names its `part` and `case`. With "contender" it is one way to do the case's work; with "info" what belongs to the
case as a whole. `cases` makes of them what a result file under bench/results/ holds.
"""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append(path: Path, row: Row) -> None:
    """Adds one line, and returns when it is on the disk."""
    with open(path, "a") as file:
        file.write(json.dumps(row, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """All rows; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def cases(rows: list[Row]) -> list[dict[str, Any]]:
    """Per case {"name", "contenders": [...], what its info rows say}, in the order of their first rows."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "contender" not in row and "info" not in row:
            continue
        case = found.setdefault(row["case"], {"name": row["case"], "contenders": []})
        if "info" in row:
            case |= row["info"]
        else:
            values = {key: value for key, value in row.items() if key not in ("part", "case", "contender", "at")}
            case["contenders"].append({"name": row["contender"], **values})
    for case in found.values():
        _compare_with_the_first(case["contenders"])
    return [case for case in found.values() if case["contenders"]]


def _compare_with_the_first(contenders: list[dict[str, Any]]) -> None:
    """Adds times_the_first, and where a plain loop was timed too speed_over_plain."""
    timed = [c for c in contenders if "device_ms" in c]
    plain = next((c for c in timed if c["name"].startswith("plain loop")), None)
    for contender in timed:
        contender.setdefault("times_the_first", contender["device_ms"] / max(timed[0]["device_ms"], 1e-9))
        if plain:
            contender["speed_over_plain"] = plain["device_ms"] / max(contender["device_ms"], 1e-9)


class Case:
    """What a benchmark is given to report to; the fixture of that name.

    Attributes:
        extra_info: what belongs to the case as a whole; written when the benchmark ends.
    """

    def __init__(self, path: Path | None, part: str, name: str):
        self.path, self.part, self.name = path, part, name
        self.extra_info: dict[str, Any] = {}
        self.rows: list[Row] = []

    def row(self, contender: str, **values: Any) -> Row:
        """Writes what was measured of one contender."""
        row = {"part": self.part, "case": self.name, "contender": contender, **values}
        self.rows.append(row)
        if self.path:
            append(self.path, row)
        return row

    def close(self) -> None:
        if self.path and self.extra_info:
            append(self.path, {"part": self.part, "case": self.name, "info": self.extra_info})
