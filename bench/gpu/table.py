"""The results of a run as one text: `python -m bench.gpu.table OUT` prints all of it.

Needs nothing but Python, so that it can be made where the run was.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import rows

SHOWN = 9500  # characters of what the driver prints
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    print(table(rows.read(parser.parse_args().out / "results.jsonl")))


def table(found: Rows, most: int | None = None) -> str:
    """All sections; or of each its beginning, so that together they have at most so many characters."""
    sections = [section(found) for section in SECTIONS]
    sections = [text for text in sections if text]
    if most is not None:
        while sum(len(text) + 2 for text in sections) > most:  # cut the longest, line by line
            longest = max(range(len(sections)), key=lambda i: len(sections[i]))
            lines = sections[longest].removesuffix("\n...").split("\n")
            sections[longest] = "\n".join([*lines[:-1], "..."])
    return "\n\n".join(sections)


def columns(title: str, head: Iterable[str], body: Iterable[Iterable[Any]]) -> str:
    lines = [[str(x) for x in line] for line in body]
    if not lines:
        return ""
    lines = [list(head), *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        line[0].ljust(widths[0]) + "".join("  " + x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    return "\n".join([title, *(line.rstrip() for line in shown)])


def number(row: dict[str, Any], key: str, factor: float = 1, digits: int = 1) -> str:
    return "" if row.get(key) is None else f"{row[key] * factor:.{digits}f}"


def header(found: Rows) -> str:
    machine = next((row["machine"] for row in found if "machine" in row), None)
    device = next((row for row in found if "copy_gb_per_s" in row), {})
    if machine is None:
        return "No machine is known: the smoke has not run."
    line = f"{machine['gpu'] or machine['cpu'] + ', no GPU'}, driver {machine['driver']}"
    line += f", torch {machine['versions']['torch']}, commit {machine['commit'][:10]}, {machine['date']}"
    if device:
        line += f"; copy {device['copy_gb_per_s']:.0f} GB/s, matrix product {device['matrix_tflops']:.0f} TFLOP/s"
    return line


def parts(found: Rows) -> str:
    lines = [(r["case"], r["outcome"], f"{r['seconds']:.0f} s", r["why"]) for r in found if r["part"] == "run"]
    return columns("PARTS", ("part", "", "", ""), lines)


def errors(found: Rows) -> str:
    lines = [
        f"{r['part']}, {r['case']}: {r.get('error') or r.get('wrong')}"[:180]
        for r in found
        if r.get("error") or r.get("wrong")
    ]
    lines += [f"{r['case']}: {r.get('reason', '')}"[:180] for r in found if r.get("test") == "failed"]
    lines += [
        f"{r['part']}, {r['case']}: skipped, {r['skipped']}" for r in found if r.get("skipped") not in (None, "no GPU")
    ]
    return "\n".join(["WRONG, FAILED OR LEFT OUT", *lines]) if lines else ""


def by_case(found: Rows) -> dict[str, dict[str, dict]]:
    """Times of the ops: a row for each library, or tile, of each case."""
    cases: dict[str, dict[str, dict]] = {}
    for row in found:
        if row["part"].split(",")[0] == "ops" and "contender" in row:
            cases.setdefault(row["case"], {})[row["contender"]] = row
    return cases


def ops(found: Rows) -> str:
    lines = []
    for case, of in by_case(found).items():
        if (one := of.get("simfast")) is not None:
            ratio = one["device_ms"] / max(one["floor_ms"], 1e-9)
            times = number(one, "device_ms", 1e3), number(one, "fastest_ms", 1e3), number(one, "floor_ms", 1e3)
            lines.append([case, *times, f"{ratio:.1f}", number(one, "warm_ms", 1e3), number(one, "call_ms", 1e3)])
    return columns("OPS, us", ("case", "time", "fastest", "floor", "x floor", "warm", "call"), lines)


def variants(found: Rows) -> str:
    """Beside the library's time, the same once more at the end: what differs between the two is noise."""
    lines = []
    for case, of in by_case(found).items():
        one, again = of.get("simfast", {}), of.get("simfast, again", {})
        for label, row in of.items():
            if row is not one and row is not again:
                ratio = row["device_ms"] / max(one["device_ms"], 1e-9) if one else None
                times = (number(r, "device_ms", 1e3) for r in (row, one, again))
                lines.append([f"{case}: {label}", *times, "" if ratio is None else f"{ratio:.2f}"])
    return columns("VARIANTS, us", ("case: variant", "time", "simfast", "again", "x simfast"), lines)


def steps(found: Rows) -> str:
    timed = [r for r in found if r["part"].startswith("step-") and "steps_per_second" in r]
    lines = [
        [
            f"{r['case'].split(', ')[-1]}, {r['contender'].removeprefix('simfast, ')}", number(r, "device_ms", 1, 2),
            number(r, "fastest_ms", 1, 2), number(r, "call_ms", 1, 2), number(r, "steps_per_second"),
            number(r, "peak_mib", 1, 0), number(r, "reserved_mib", 1, 0), r.get("kernels", ""), r.get("host_reads", ""),
            number(r, "share_of_matrix_rate", 100, 0), number(r, "share_of_byte_floor", 100, 0),
        ]
        for r in timed
    ]  # fmt: skip
    head = (
        "step", "ms", "fastest", "call", "steps/s", "MiB", "reserved", "kernels", "host reads", "% of matrix rate",
        "% of bytes",
    )  # fmt: skip
    return columns("STEPS", head, lines)


def graphs(found: Rows) -> str:
    lines = [
        [
            r["case"], number(r, "device_ms", 1e3), number(r, "kernels", 1, 0), number(r, "copies_and_fills", 1, 0),
            number(r, "busy_us", 1, 0), number(r, "mean_gap_us"), ", ".join(r["sorts"])[:40] or "none",
        ]
        for r in found
        if "sorts" in r
    ]  # fmt: skip
    return columns("GRAPHS", ("graph", "us", "kernels", "copies", "busy us", "mean gap us", "sorts"), lines)


def longest(found: Rows) -> str:
    lines = []
    for row in [r for r in found if "kernels_by_name" in r]:
        shown = 20 if row["part"] == "step-profile" else 8
        lines += [[row["case"], "", ""]] if row["kernels_by_name"] else []
        lines += [[f"  {name[:70]}", f"{count:.0f}", f"{us:.0f}"] for name, count, us in row["kernels_by_name"][:shown]]
    return columns("LONGEST KERNELS", ("kernel", "number", "us"), lines)


def counters(found: Rows) -> str:
    listed = [r for r in found if "counters" in r]
    if not listed:
        return ""
    names = list(listed[0]["counters"])
    short = [name.split("__")[1].split(".")[0][:12] + "." + name.split(".")[1][:3] for name in names]
    return columns(
        "COUNTERS",
        ("kernel", *short),
        [[r["case"].removeprefix("counters ")[:44], *r["counters"].values()] for r in listed],
    )


def tests(found: Rows) -> str:
    lines = [[r["case"], *(r["tests"][k] for k in ("passed", "failed", "skipped"))] for r in found if "tests" in r]
    return columns("TESTS", ("part", "passed", "failed", "skipped"), lines)


def peers(found: Rows) -> str:
    lines, missing = [], {}
    for case in rows.cases([r for r in found if r["part"].startswith("peers-")]):
        for c in case["contenders"]:
            if "missing" in c:
                missing[c["name"]] = c["missing"]
                continue
            name = f"{case['name'].split('::')[-1].removeprefix('bench_')}: {c['name']}"[:80]
            lines.append([name, number(c, "device_ms", 1, 4), number(c, "times_the_first", 1, 2)])
    text = columns("PEERS", ("case: contender", "ms", "x the first"), lines)
    return "\n".join(filter(None, [text, *(f"{name}: {reason}"[:120] for name, reason in missing.items())]))


def others(found: Rows) -> str:
    lines = [
        [r["case"], r.get("contender", ""), number(r, "device_ms", 1e3), number(r, "tflops", 1, 0)]
        for r in found
        if "tflops" in r
    ]
    text = columns("CONVOLUTIONS, us", ("layer", "", "us", "TFLOP/s"), lines)
    said = [
        f"{r['case']}: {r.get('summary') or number(r, 'seconds')}"
        for r in found
        if r["part"] in ("train", "memcheck", "racecheck") and "passed" in r
    ]
    return "\n".join([text, *said]).strip()


SECTIONS: tuple[Callable[[Rows], str], ...] = (
    header, parts, errors, ops, variants, graphs, steps, tests, longest, others, counters, peers,
)  # fmt: skip


if __name__ == "__main__":
    main()
