"""The device to compute on; and what a result was made with: processor or GPU, versions, and the commit."""

import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import simfast

ROOT = Path(simfast.__file__).parent.parent


def pick_device(asked: str) -> torch.device:
    """The device asked for; auto takes the GPU where there is one.

    Raises:
        ValueError: cuda was asked for, and there is no GPU.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, and torch sees no GPU")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def environment(device: torch.device) -> dict[str, Any]:
    """{"device", "torch", "simfast", "commit", "clean"}: names a reader knows; no host name and no path.

    commit is None outside a checkout of this project; clean tells whether its tracked files were as committed.
    """
    ours = git("rev-parse", "--show-toplevel") == str(ROOT)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "simfast": simfast.__version__,
        "commit": git("rev-parse", "HEAD") if ours else None,
        "clean": not git("status", "--porcelain", "--untracked-files=no") if ours else None,
    }


def git(*arguments: str) -> str | None:
    """What a git command says of the folder that the package is in; None where it fails or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_name() -> str:
    """The processor's name as it calls itself."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else platform.machine()
