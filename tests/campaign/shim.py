"""The library that records file operations or imitates a full disk; see shim.c."""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
RECORD, FULL = 1, 2


def build() -> Path:
    """The library, compiled where it is older than its source."""
    library = Path(tempfile.gettempdir()) / f"simfast-campaign-{os.getuid()}-{int(SOURCE.stat().st_mtime)}.so"
    if not library.exists():
        fresh = library.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([os.environ.get("CC", "gcc"), *flags, "-o", fresh, SOURCE, "-ldl", "-lpthread"], check=True)
        os.replace(fresh, library)
    return library


def is_loaded() -> bool:
    """Whether this process was started with it."""
    return hasattr(ctypes.CDLL(None), "campaign_arm")


def arm(mode: int, root: Path, file: Path) -> None:
    """From here on, in this process and those that it starts.

    Args:
        mode: RECORD or FULL.
        root: the folder that is watched.
        file: where to record to; of a full disk, eight bytes: how many are left.
    """
    root = Path(os.path.realpath(root))
    os.environ["CAMPAIGN_SHIM"] = f"{mode}:{root}:{file}"
    ctypes.CDLL(None).campaign_arm(mode, os.fsencode(root), os.fsencode(file))
