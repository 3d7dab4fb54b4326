"""Where a command is to write, looked at before it computes anything."""

from typing import Any


def require_places(command: Any) -> None:
    """
    Args:
        command: one of `simfast.cli.commands`, of which `out`, `report` and the settings' `out` and `cache` count.

    Raises:
        ValueError: a file where a folder has to be, or the reverse; names the option, the rule and what is there.
    """
    report = getattr(command, "report", None)
    folders = {
        "out": getattr(command, "out", None) or command.config.out,
        "cache": command.config.cache,
        "report": report and report.parent,
    }
    for name, folder in folders.items():
        for path in (folder, *folder.parents) if folder else ():
            if path.exists() and not path.is_dir():
                raise ValueError(f"{name}: {folder} must be a folder or nothing yet, got the file {path}")
    if report and report.is_dir():
        raise ValueError(f"report: {report} must be a file or nothing yet, got a folder")
