"""Stuff and instance matching for any trainer."""

from simfast.matching.matching import (
    Regions,
    StuffInstanceMatching,
    correct_labels,
    predicted_labels,
    shrink_labels,
)

__all__ = ["Regions", "StuffInstanceMatching", "correct_labels", "predicted_labels", "shrink_labels"]
