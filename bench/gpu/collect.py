"""Makes one result file for bench/results/ of what a run, or several on one machine, left behind.

    python -m bench.gpu.collect OUT... [--to bench/results] [--note "what a reader should know"]

The file is of the form that bench/run.py writes, with the outcomes of the parts, the tests that failed and the counters
added; bench/table.py shows it.
"""

import argparse
from pathlib import Path

from bench import rows
from bench.run import ROOT, slug, write

CASELESS = ("machine", "info", "contender", "test", "outcome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--note", default="")
    asked = parser.parse_args()
    found = [row for out in asked.out for row in rows.read(out / "results.jsonl")]
    result = collected(found, asked.note)
    asked.to.mkdir(parents=True, exist_ok=True)
    path = asked.to / f"{slug(result['gpu'] or result['cpu'])}-{result['commit'][:10]}.json"
    write(path, result)
    print(path)


def collected(found: list[rows.Row], note: str) -> dict:
    """What the file holds.

    Raises:
        SystemExit: the rows say no machine, or of several kinds.
    """
    machines = [row["machine"] for row in found if "machine" in row]
    names = {machine["gpu"] or machine["cpu"] for machine in machines}
    if len(names) != 1:
        raise SystemExit(f"collect: the runs must be of one kind of machine, got {sorted(names) or 'none'}")
    failed = [{"name": row["case"], "reason": row.get("reason")} for row in found if row.get("test") == "failed"]
    return {
        **machines[0],
        "load_before_and_after": [machine["load"] for machine in (machines[0], machines[-1])],
        "note": note,
        "cases": rows.cases(found),
        "parts": [{k: row[k] for k in ("case", "outcome", "seconds", "why")} for row in found if row["part"] == "run"],
        "failed_tests": failed,
        "other": [row for row in found if not any(key in row for key in CASELESS)],
    }


if __name__ == "__main__":
    main()
