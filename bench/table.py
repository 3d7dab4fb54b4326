"""A table, and with --plot a picture, of the files that bench/run.py writes.

python -m bench.table bench/results/*.json [--plot bench/results/plot.png]
"""

import argparse
import json
import os
from pathlib import Path

from tabulate import tabulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path, help="write a bar chart to this image file")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text()) for path in arguments.files]
    for result in results:
        print(table(result), end="\n\n")
    if arguments.plot:
        plot(results, arguments.plot)


def title(result: dict) -> str:
    cpu, gpu = f"{result['cpu']}, {result['cores']} cores", f"{result['gpu']}, driver {result['driver']}"
    torch = result["versions"]["torch"]
    return f"{gpu if result['gpu'] else cpu}; torch {torch}; commit {result['commit'][:10]}; {result['date']}"


def table(result: dict) -> str:
    """Markdown: per case every contender's median, how many times the first one's, and the share of the floor: of a
    copy's rate, or for a training step of the matrix rate."""
    load = " and ".join(f"{x:.1f}" for x in result["load_before_and_after"])
    lines = [f"**{title(result)}**", "", f"Load before and after: {load}. {result['note']}".strip(), ""]
    rows = []
    for case in result["cases"]:
        for i, c in enumerate(case["contenders"]):
            name = case["name"] if i == 0 else ""
            if "missing" in c:
                rows.append([name, c["name"], f"missing: {c['missing']}", "", "", "", ""])
                continue
            host, share = (
                c.get("call_ms", c.get("processor_ms")),
                c.get("share_of_copy_floor", c.get("share_of_matrix_rate")),
            )
            host, share = "" if host is None else f"{host:.3f}", "" if share is None else f"{share:.0%}"
            fastest, ratio = f"{c['fastest_ms']:.3f}", f"{c['times_the_first']:.2f}"
            rows.append([name, c["name"], f"{c['device_ms']:.3f}", fastest, host, ratio, share])
    headers = [
        "case",
        "contender",
        "median ms",
        "fastest ms",
        "call or processor ms",
        "times the first",
        "share of floor",
    ]
    return "\n".join(lines) + tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def plot(results: list[dict], path: Path) -> None:
    """One panel a case, bars on a logarithmic scale."""
    import matplotlib.pyplot as plt

    cases = [(result, case) for result in results for case in result["cases"]]
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 2.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(cases) :]:
        axis.remove()
    for axis, (_, case) in zip(axes.flat, cases, strict=False):
        timed = [c for c in case["contenders"] if "device_ms" in c][::-1]
        colours = ["tab:blue" if c["name"].startswith("simfast") else "lightgray" for c in timed]
        bars = axis.barh([c["name"] for c in timed], [c["device_ms"] for c in timed], color=colours, log=True)
        axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        if "floor_ms" in case:
            axis.axvline(case["floor_ms"], color="tab:red", linewidth=1)
        axis.set_title(case["name"].split("::")[-1], fontsize=8)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.15)
    figure.supxlabel(
        "milliseconds; red: the time of a copy of the same bytes, for a step of its matrix products", fontsize=8
    )
    figure.suptitle("; ".join(dict.fromkeys(title(r) for r in results)), fontsize=8)
    fresh = path.with_name(path.stem + ".new" + path.suffix)
    figure.savefig(fresh, dpi=110)
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
