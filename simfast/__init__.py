"""simfast: stuff and instance matching (SIM, CVPR 2020) for domain adaptation of semantic segmentation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simfast.matching import StuffInstanceMatching

__all__ = ["StuffInstanceMatching", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What needs torch is imported where it is asked for."""
    if name != "StuffInstanceMatching":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from simfast.matching import StuffInstanceMatching

    return StuffInstanceMatching
