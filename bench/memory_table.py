"""The memory of a captured step as a table, from counts of torch's own allocator on the stub GPU:

python -m tests.stub tests/stub/step_memory.py bench/results/launches/memory.json    counts
python -m bench.memory_table docs/step.md                                           puts the table into the page
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "launches" / "memory.json"
WAYS = {"plain": "plain", "fused": "`--fuse all`", "fused, low": "`--fuse all --memory low`"}
"""How a step runs, and what the page calls it."""
BEGIN, END = "<!-- memory: begin -->", "<!-- memory: end -->"


def table(found: dict) -> str:
    """Two tables in Markdown, a line a run: GiB that the process holds at most, and that are in use at once at most."""
    titles = {
        "peak_reserved_mib": "Held at most, GiB, by images of each domain in a step:",
        "peak_allocated_mib": "In use at once at most, GiB:",
    }
    return "\n\n".join(f"{title}\n\n{_one(found, name)}" for name, title in titles.items())


def _one(found: dict, name: str) -> str:
    """Of one of the numbers."""
    lines = [f"| run | images | {' | '.join(WAYS.values())} |", "|---" * (2 + len(WAYS)) + "|"]
    for run, ways in found["rows"].items():
        sizes = list(dict.fromkeys(size for counts in ways.values() for size in counts))
        cells = [
            ", ".join(f"{ways[way][size][name] / 1024:.1f}" for size in sizes) if way in ways else "not counted yet"
            for way in WAYS
        ]
        lines.append(" | ".join([f"| {run}", ", ".join(sizes), *cells]) + " |")
    return "\n".join(lines)


def put(page: str, text: str) -> str:
    """A page with a text between its marks."""
    return f"{page[: page.index(BEGIN) + len(BEGIN)]}\n\n{text}\n\n{page[page.index(END) :]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    page.write_text(put(page.read_text(), table(json.loads(RESULTS.read_text()))))


if __name__ == "__main__":
    main()
