"""Where a command is to write is looked at before it reads or computes anything."""

import pytest
import torch

from simfast.cli import main

COMMANDS = {
    "train": ("train --preset streets --source-root nowhere --out", "out"),
    "ablate": ("ablate --preset streets --source-root nowhere --out", "out"),
    "predict": ("predict best.pt nowhere --out", "out"),
    "pseudo-labels": ("pseudo-labels best.pt --target-root nowhere --out", "out"),
    "prepare": ("prepare --preset streets --source-root nowhere --cache", "cache"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder, with a file, a folder, and weights without a network."""
    monkeypatch.chdir(tmp_path)
    torch.save({"layer.weight": torch.zeros(2)}, "best.pt")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()


def said(command):
    with pytest.raises(SystemExit) as exit_:
        main(command.split())
    return exit_.value.code


@pytest.mark.parametrize("place", ["file", "file/run"])
@pytest.mark.parametrize(("command", "name"), COMMANDS.values(), ids=COMMANDS)
def test_a_file_in_the_place_of_a_folder_is_named_with_the_option(command, name, place):
    message = f"{name}: {place} must be a folder or nothing yet, got the file file"
    assert said(f"{command} {place}") == f"simfast {command.split()[0]}: {message}"


def test_a_report_is_a_file_in_a_folder():
    below, itself = said("evaluate best.pt --report file/x.json"), said("diagnose best.pt --report folder")
    assert below.endswith("report: file must be a folder or nothing yet, got the file file")
    assert itself.endswith("report: folder must be a file or nothing yet, got a folder")
