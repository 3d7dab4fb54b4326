"""What a training step must read, write and compute at least, by arithmetic: bytes first. Nothing here is measured.

    python -m bench.roofline                            the paper's size, before and after every option of `fuse`
    python -m bench.roofline --options norms,head       after these
    python -m bench.roofline --docs docs/gpu-estimates.md    puts the tables into the page

The layers are those of the real modules, seen on the meta device; rules say what each operation reads and writes
(bench/roofline_rules.py). Times are those of an H100 under the assumptions below; a floor is what no schedule of the
same operations can be under.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.roofline_rules import Work
from bench.roofline_step import Step
from simfast.config import Config

# Of an H100.
BANDWIDTH = 3.0e12
"""Bytes a second of a large copy."""
PRODUCTS = {2: 798e12, 4: 399e12}
"""FLOP a second of a large matrix product, by the bytes of an element; float32 is TF32."""
SHARE = 0.65
"""Of that rate which convolutions reach, assumed."""
FLOAT32 = 40e12
"""FLOP a second of a float32 product without tensor cores, assumed."""
LAUNCH = 1.0e-6
"""Seconds between one kernel and the next in a graph, assumed."""

PARTS = ("norms", "cooperative", "products", "weights", "head", "maps")
"""Of `fuse`, those that there are rules for."""
BEGIN, END = "<!-- roofline: begin -->", "<!-- roofline: end -->"

FURTHER = "further (not built)"


@dataclasses.dataclass
class Total:
    """Of some operations: seconds under the assumptions, and at full rates without gaps between launches."""

    launches: int = 0
    read: float = 0
    written: float = 0
    flops: float = 0
    seconds: float = 0
    floor: float = 0

    def add(self, work: Work, size: int, share: float = SHARE) -> None:
        moved, rate = work.read + work.written, PRODUCTS[size]
        self.launches += work.launches
        self.read += work.read
        self.written += work.written
        self.flops += work.flops
        self.seconds += max(moved / BANDWIDTH, work.tiled / (share * rate), work.fp32 / FLOAT32)
        self.seconds += LAUNCH * work.launches
        self.floor += max(moved / BANDWIDTH, work.flops / rate)


def by_kind(step: Step) -> dict[str, Total]:
    """Totals of a step by kind of layer, the most bytes first."""
    result: dict[str, Total] = {}
    for work in step.works():
        result.setdefault(work.kind, Total()).add(work, step.rules.size)
    return dict(sorted(result.items(), key=lambda item: -item[1].read - item[1].written))


def total(step: Step, share: float = SHARE) -> Total:
    result = Total()
    for work in step.works():
        result.add(work, step.rules.size, share)
    return result


def at_shares(step: Step) -> str:
    """Milliseconds if convolutions reach other shares of the full rate than is assumed."""
    found = {share: 1e3 * total(step, share).seconds for share in (0.5, SHARE, 0.8, 1.0)}
    return ", ".join(f"{ms:.1f} at {share:.0%}" for share, ms in found.items())


def bytes_moved(config: Config) -> float:
    """Bytes that one step reads and writes."""
    found = total(Step(config))
    return found.read + found.written


def floor_ms(config: Config) -> float:
    """Milliseconds on an H100 that no order of a step's operations can be under, caches left out."""
    return 1e3 * total(Step(config)).floor


# ----------------------------------------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------------------------------------


def ways(config: Config) -> dict[str, Step]:
    """How a configuration's step can run, by name: plain, each part of `fuse`, all of them, and beyond."""
    asked = {"none": ("none",)} | {part: (part,) for part in PARTS} | {"all": ("all",)}
    steps = {name: Step(dataclasses.replace(config, fuse=fuse, memory="usual")) for name, fuse in asked.items()}
    everything = dataclasses.replace(config, fuse=("all",), memory="low")
    return steps | {"all, memory low": Step(everything), FURTHER: Step(everything, without_norms=True)}


def kinds_table(before: Step, after: Step) -> list[str]:
    """A line a kind of layer."""
    lines = [
        "| kind of layer | launches | GB read + written | | TFLOP | ms | | floor, ms | |",
        "|---|---|---|---|---|---|---|---|---|",
        "| | before, after | before | after | | before | after | before | after |",
    ]
    found = by_kind(before), by_kind(after)
    names = list(found[0]) + [name for name in found[1] if name not in found[0]]
    sums = total(before), total(after)
    for name, (a, b) in {n: tuple(one.get(n, Total()) for one in found) for n in names}.items():
        lines.append(_kind_line(name, a, b))
    return [*lines, _kind_line("**all**", *sums)]


def _kind_line(name: str, a: Total, b: Total) -> str:
    moved = " | ".join(f"{one.read / 1e9:.2f} + {one.written / 1e9:.2f}" for one in (a, b))
    flops = f"{a.flops / 1e12:.2f}" if a.flops else ""
    times = " | ".join(f"{1e3 * value:.2f}" for value in (a.seconds, b.seconds, a.floor, b.floor))
    return f"| {name} | {a.launches:,}, {b.launches:,} | {moved} | {flops} | {times} |"


def ways_table(steps: dict[str, Step]) -> list[str]:
    """A line a way."""
    lines = [
        "| `fuse` | launches | GB read + written | in all | ms | floor, ms | kept of the source, MiB | of the target |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, step in steps.items():
        found = total(step)
        kept = [sum(step.kept(domain).values()) / 2**20 if step.trains(domain) else 0 for domain in step.sizes]
        lines.append(
            f"| {name} | {found.launches:,} | {found.read / 1e9:.1f} + {found.written / 1e9:.1f} "
            f"| {(found.read + found.written) / 1e9:.1f} | {1e3 * found.seconds:.1f} | {1e3 * found.floor:.1f} "
            f"| {kept[0]:,.0f} | {kept[1]:,.0f} |"
        )
    return lines


def tables(config: Config, options: Sequence[str] = ("all",)) -> str:
    """Both tables in Markdown, of a configuration whatever its `fuse`; the first one after these options."""
    before = Step(dataclasses.replace(config, fuse=("none",), memory="usual"))
    after = Step(dataclasses.replace(config, fuse=tuple(options)))
    steps = ways(config)
    shares = "; ".join(f"{name}: {at_shares(steps[name])}" for name in ("none", "all", FURTHER))
    lines = [*ways_table(steps), "", f"ms by what convolutions reach of the full rate. {shares}.", ""]
    lines += kinds_table(before, after)
    return "\n".join(lines)


def as_json(config: Config) -> dict[str, Any]:
    """What the tables are made of: by way, then by kind of layer."""
    result = {}
    for name, step in ways(config).items():
        kinds = {kind: dataclasses.asdict(one) for kind, one in by_kind(step).items()}
        kept = {domain: step.kept(domain) for domain in step.sizes if step.trains(domain)}
        result[name] = {"kinds": kinds, "total": dataclasses.asdict(total(step)), "kept": kept}
    return result


def put(text: str, table: str) -> str:
    """A page with the table between its marks."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n\n{table}\n\n{text[after:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--options", default="all", help="parts of `fuse` after which the second table is, with commas")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="settings, of the paper's else")
    parser.add_argument("--json", type=Path, help="write what the tables are made of here, in bytes and seconds")
    parser.add_argument("--docs", type=Path, help="put the tables into this page, between its marks")
    arguments = parser.parse_args()
    import yaml

    settings = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in arguments.set)}
    config = Config.from_dict(settings, "--set", base=Config())
    table = tables(config, arguments.options.split(","))
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(config), indent=1) + "\n")
    if arguments.docs:
        arguments.docs.write_text(put(arguments.docs.read_text(), table))


if __name__ == "__main__":
    main()
