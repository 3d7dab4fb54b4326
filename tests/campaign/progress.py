"""How far a campaign has come: kept in a file after every case, printed as a table."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from simfast.runtime.files import write_text


class Progress:
    """Counts of every row, and where each kind goes on.

    Args:
        path: the file, which may be there of an earlier call.
        settings: of this call, which must be those of the file.

    Raises:
        SystemExit: they are not.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        fresh = {
            "settings": settings,
            "rows": {},
            "next": {},
            "spent": {},
            "open": [],
            "over": [],
            "bad": [],
            "seconds": 0.0,
        }
        self.state = json.loads(path.read_text()) if path.exists() else fresh
        if self.state["settings"] != settings:
            raise SystemExit(f"campaign: {path} must be of {settings}, got {self.state['settings']}; another --out")
        self._again = list(self.state["open"])  # what an earlier call had begun as it was stopped
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """In all calls together."""
        return self.state["seconds"]

    def take(self, kind: str) -> int:
        """The next number of a kind's cases."""
        for one in self._again:
            if one[0] == kind:
                self._again.remove(one)
                return one[1]
        number = self.state["next"].get(kind, 0)
        self.state["next"][kind] = number + 1
        self.state["open"].append([kind, number])
        self.save()
        return number

    def share(self, kind: str, weight: float) -> float:
        """How much of its share a kind has had."""
        return self.state["spent"].get(kind, 0.0) / weight

    def spend(self, kind: str, seconds: float) -> None:
        self.state["spent"][kind] = self.state["spent"].get(kind, 0.0) + seconds

    def add(self, kind: str, number: int, rows: Iterable[tuple[str, int, list[str]]], seconds: float) -> list[str]:
        """Counts what a case found; returns what of it is bad."""
        now, rows, bad = time.monotonic(), list(rows), []
        self.state["seconds"] += now - self._since
        self._since = now
        for row, tried, wrong in rows:
            entry = self.state["rows"].setdefault(row, {"tried": 0, "bad": 0, "seconds": 0.0})
            entry["tried"] += tried
            entry["bad"] += len(wrong)
            entry["seconds"] += seconds / len(rows)
            bad += [f"{row} ({kind} {self.state['settings']['seed'] + number}): {what}" for what in wrong]
        self.state["bad"] += bad
        self.state["open"] = [one for one in self.state["open"] if one != [kind, number]]
        self.save()
        return bad

    def save(self) -> None:
        write_text(self.path, json.dumps(self.state, indent=1) + "\n")

    def table(self) -> str:
        """Markdown: what was tried, and what came of it."""
        rows = [("kind", "tried", "good", "bad", "seconds")]
        total = {"tried": 0, "bad": 0, "seconds": 0.0}
        entries = sorted(self.state["rows"].items())
        for _, entry in entries:
            total = {key: total[key] + entry[key] for key in total}
        for name, entry in [*entries, ("all", total)]:
            good = max(entry["tried"] - entry["bad"], 0)
            counts = (f"{entry['tried']:,}", f"{good:,}", f"{entry['bad']:,}", f"{entry['seconds']:,.0f}")
            rows.append((name, *counts))
        wide = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = []
        for name, *counts in rows:
            cells = [name.ljust(wide[0]), *(x.rjust(width) for x, width in zip(counts, wide[1:], strict=True))]
            lines.append("| " + " | ".join(cells) + " |")
        rule = "|" + "|".join(["-" * (wide[0] + 2), *("-" * (w + 1) + ":" for w in wide[1:])]) + "|"
        return "\n".join([lines[0], rule, *lines[1:]])
