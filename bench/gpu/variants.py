"""Builds of the kernels that are measured beside the library: bench/gpu/bundle.py makes them."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "build" / "gpu-bundle"


class Variant(NamedTuple):
    """Another build of the kernels."""

    flags: str
    """For nvcc, as SIMFAST_CUDA_FLAGS: "-DNAME=2"."""
    cases: tuple[str, ...] = ("",)
    """It is measured in those cases of bench/gpu/ops.py whose name begins with one of these."""


MEANS = "mean 91x161", "mean 65x129"
VARIANTS: dict[str, Variant] = {
    "mean-384-blocks": Variant("-DSIMFAST_MEAN_BLOCKS=384", MEANS),
    "mean-one-a-lane": Variant("-DSIMFAST_MEAN_PER_LANE=1", MEANS),
    "mean-2-slots": Variant("-DSIMFAST_MEAN_SLOTS=2", MEANS),
    "mean-6-slots": Variant("-DSIMFAST_MEAN_SLOTS=6", MEANS),
    "regions-512-threads": Variant("-DSIMFAST_SMALL_THREADS=512", ("regions",)),
    "tile-512-threads": Variant("-DSIMFAST_TILE_THREADS=512", ("components",)),
}
