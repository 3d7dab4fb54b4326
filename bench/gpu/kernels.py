"""Launches the kernels of every op once at the paper's sizes, and little else: what a counting profiler runs."""

import torch

from bench.gpu.ops import all_cases
from bench.gpu.works import SOURCE

CASES = (
    "components 1024x2048 smooth uint8",
    f"regions {SOURCE[0]}x{SOURCE[1]} smooth int64",
    f"mean {SOURCE[0]}x{SOURCE[1]} bfloat16 channels-last",
    f"mean {SOURCE[0]}x{SOURCE[1]} bfloat16 NCHW",
    f"mean backward {SOURCE[0]}x{SOURCE[1]} bfloat16 channels-last",
    "nearest float32 bank 10 of 10 slots",
    "ring_write bfloat16 storage",
)


def main() -> None:
    if not torch.cuda.is_available():
        print("skipped, no GPU")
        return
    works = all_cases("cuda")
    for name in CASES:
        works[name]().run()
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
