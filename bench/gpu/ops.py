"""Device time of every op at the paper's sizes: graphs of 20 calls, the second-level cache refilled before each.

`--label` names the library that is measured (SIMFAST_LIBRARY says which one it is). Beside each time stands the floor:
what must be read and written at least, at the rate of a large copy measured in the same process; `warm_ms` is without
the refills, and so with whatever the cache kept. What moves little takes what a launch
takes: the first case is one that does nothing.
"""

from collections.abc import Callable
from functools import partial

import torch

from bench import matching as matching_bench
from bench.device_timing import Replayed, own_stream
from bench.gpu import works
from bench.gpu.part import Part, arguments
from bench.gpu.works import FULL, INSTANCES, SOURCE, TARGET, Work
from bench.timing import copy_rate, judge, summary
from simfast.testing import noise_labels, smooth_labels

ROUNDS = 11
# Of the first kernel of nearest_l1, beside its default: rows, threads that share a row, warps.
TILES = ((64, 8, 4), (64, 8, 8), (32, 16, 4), (16, 16, 2))


def all_cases(device: str) -> dict[str, Callable[[], Work]]:
    last, contiguous = torch.channels_last, torch.contiguous_format
    full = FULL if device == "cuda" else (64, 96)
    cases: dict[str, Callable[[], Work]] = {"a launch": partial(works.launch, device)}
    for kind, make in (("smooth", partial(smooth_labels, scale=32)), ("noise", noise_labels)):
        for dtype in (torch.uint8, torch.int64) if kind == "smooth" else (torch.uint8,):
            name = f"components {full[0]}x{full[1]} {kind} {dtype}"
            cases[name] = lambda m=make, d=dtype: works.components(m(1, *full).to(d), device)
    for size, kind in ((SOURCE, "smooth"), (TARGET, "smooth"), (SOURCE, "noise")):
        make = partial(smooth_labels, scale=16) if kind == "smooth" else noise_labels
        name = f"regions {size[0]}x{size[1]} {kind} int64"
        cases[name] = lambda s=size, m=make: works.regions(m(1, *s).long(), device)
    for size in (SOURCE, TARGET):
        for name, op in (("mean", works.mean), ("mean backward", works.mean_backward)):
            for layout, memory_format in (("channels-last", last), ("NCHW", contiguous)):
                for dtype in (torch.bfloat16, torch.float32):
                    if dtype == torch.bfloat16 or (layout == "NCHW" and size == SOURCE):
                        cases[f"{name} {size[0]}x{size[1]} {dtype} {layout}"] = partial(
                            op, size, dtype, memory_format, device
                        )
    for dtype in (torch.float32, torch.bfloat16):
        for live in (INSTANCES, 3):
            cases[f"nearest {dtype} bank {live} of 10 slots"] = partial(works.nearest, dtype, live, device)
        cases[f"ring_write {dtype} storage"] = partial(works.ring_write, dtype, device)
    cases["nearest backward"] = partial(works.nearest_backward, device)
    cases["select_rings"] = partial(works.select_rings, device)
    cases["matching_losses"] = partial(works.losses, False, device)
    cases["matching_losses backward"] = partial(works.losses, True, device)
    if device == "cuda":
        for case in matching_bench.CASES:
            cases[f"matching {case}"] = partial(works.whole_matching, case, device)
    return {name.replace("torch.", ""): make for name, make in cases.items()}


def tile_cases(part: Part) -> dict[str, Callable[[], None]]:
    """nearest_l1 with each of TILES, as contenders of its own cases."""
    cases = {}
    for dtype in (torch.float32, torch.bfloat16):
        for tile in TILES:
            name, label = f"nearest {dtype} bank {INSTANCES} of 10 slots", "tile {}x{}x{}".format(*tile)
            make = partial(works.nearest, dtype, INSTANCES, part.device, tile)
            name = name.replace("torch.", "")
            cases[f"{name}, {label}"] = partial(measure, part, label, name, make)
    return cases


def measure(part: Part, label: str, name: str, make: Callable[[], Work]) -> None:
    if part.device == "cpu":
        work = make()
        work.check(work.run())
        part.row(name, passed=True, skipped="no GPU")
        return
    # One stream for all: a gradient is captured only on that of its forward pass.
    with torch.cuda.stream(own_stream()):
        work = make()
        wrong = judge(work.check, work.run())
        replayed = Replayed(work.run, 1e-4)
        replayed.prove(partial(judge, work.check))
        times = [replayed.sample() for _ in range(ROUNDS)]
        warm = min(replayed.sample_warm() for _ in range(3))
    found = summary([t for t, _ in times])
    floor = work.bytes_moved / copy_rate("cuda")
    part.row(
        name,
        contender=label,
        **found,
        call_ms=min(c for _, c in times) * 1e3,
        warm_ms=warm * 1e3,
        floor_ms=floor * 1e3,
        bytes_moved=work.bytes_moved,
        share_of_copy_floor=floor * 1e3 / max(found["device_ms"], 1e-6),
        timed_by=replayed.how,
        **({"wrong": wrong} if wrong else {}),
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--label", default="simfast", help="name of the library that is measured")
    parser.add_argument("--select", nargs="*", default=[""], help="only cases whose name begins with one of these")
    parser.add_argument("--tiles", action="store_true", help="nearest_l1 with other tiles too")
    asked = parser.parse_args()
    part = Part("ops" if asked.label == "simfast" else f"ops, {asked.label}", asked)
    chosen = {name: make for name, make in all_cases(part.device).items() if name.startswith(tuple(asked.select))}
    cases = {name: partial(measure, part, asked.label, name, make) for name, make in chosen.items()}
    part.each(cases | (tile_cases(part) if asked.tiles and part.device == "cuda" else {}))
    part.end()


if __name__ == "__main__":
    main()
