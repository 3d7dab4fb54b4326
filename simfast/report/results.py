"""The result that a run leaves, read again."""

import json
import logging
import math
from pathlib import Path
from typing import Any

log = logging.getLogger("simfast")


def read_result(path: Path) -> dict[str, Any] | None:
    """A run's `result.json`; None where there is none.

    One that is empty or cut short, as a power loss may leave it, counts as none: a run that is resumed at its end
    writes it again.

    Raises:
        ValueError: it holds something else; names the file.
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        log.warning("%s: is empty or cut short, and counts as not there; its run is to be resumed", path)
        return None
    if (wrong := _wrong(found)) is not None:
        raise ValueError(f"{path}: must be the result of a run, got {wrong}; remove it, and resume its run to write it")
    return found


def _wrong(found: Any) -> str | None:
    """What is not as in the result of a run."""
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    for name in ("last", "best", "report"):
        rows = found.get(name, None if name != "report" else {})
        rows = rows.values() if name == "report" and isinstance(rows, dict) else [rows]
        for row in rows:
            if not isinstance(row, dict) or "miou" not in row:
                return f"no scores in {name!r}"
            if bad := [key for key, value in row.items() if not is_figure(value)]:
                return f"{row[bad[0]]!r} for {bad[0]!r} in {name!r}"
    return None


def is_figure(value: Any) -> bool:
    """Whether it is a finite number, or None, which stands for no value."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
