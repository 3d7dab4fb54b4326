"""Builds of the kernels that are measured beside the library: bench/gpu/bundle.py makes them."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "build" / "gpu-bundle"


class Variant(NamedTuple):
    """Another build of the kernels."""

    flags: str
    """For nvcc, as SIMFAST_CUDA_FLAGS: "-DNAME=2"."""
    cases: str = ""
    """It is measured in those cases of bench/gpu/ops.py whose name begins so."""


VARIANTS: dict[str, Variant] = {
    "mean-384-blocks": Variant("-DSIMFAST_MEAN_BLOCKS=384", "mean"),
    "mean-one-a-lane": Variant("-DSIMFAST_MEAN_PER_LANE=1", "mean"),
    "mean-8-slots": Variant("-DSIMFAST_MEAN_SLOTS=8", "mean"),
    "regions-512-threads": Variant("-DSIMFAST_SMALL_THREADS=512", "regions"),
    "tile-512-threads": Variant("-DSIMFAST_TILE_THREADS=512", "components"),
}
