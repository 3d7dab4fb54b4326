"""Settings and their named starting points."""

from simfast.config.config import COMMAND_LINE_ONLY, FREE_ON_RESUME, MOVABLE, Config

__all__ = ["COMMAND_LINE_ONLY", "FREE_ON_RESUME", "MOVABLE", "Config"]
