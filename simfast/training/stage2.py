"""What stage 2 needs of stage 1: pseudo labels of the target by its best network (section 4.2)."""

import logging
from pathlib import Path
from typing import Any

import torch

from simfast.config import Config
from simfast.data.parts import open_part
from simfast.data.predictions import THRESHOLDS_FILE
from simfast.inference.label_folder import require_labels
from simfast.inference.pseudo_labels import make_pseudo_labels
from simfast.models import checkpoint
from simfast.models.restore import Restored, restore_model
from simfast.runtime.console import StopSignals
from simfast.runtime.lock import tidy
from simfast.training.folder import RunFolder

log = logging.getLogger("simfast")


def find_pseudo_labels(config: Config, device: torch.device, run: RunFolder) -> Path:
    """The folder of stage 2's pseudo labels, which `config.stage1` makes where it is not complete yet.

    Args:
        config: settings of stage 2.
        device: where to compute.
        run: the run's folder.

    Raises:
        ValueError: the folder is not complete, and there is no stage 1 to complete it; it, or stage 1, is of other
            classes.
        SystemExit: a signal, also where all is made by then; what is made so far is kept.
    """
    folder = config.pseudo_labels or run.path / "pseudo-labels"
    if (folder / THRESHOLDS_FILE).exists() and (config.resume or config.stage1 is None):
        require_labels(folder, config.classes.names)
        if config.pseudo_labels is None:
            tidy(folder)
        return folder
    if config.stage1 is None:
        raise ValueError(
            f"pseudo_labels: {folder} must be complete, got no {THRESHOLDS_FILE}; give --stage1 to make it"
        )
    path = checkpoint.resolve(config.stage1, "best.pt", stage=1)
    restored = restore_model(path, classes=config.classes, device=device)
    try:
        label_target(config, restored, folder, device)
    except SystemExit:
        if config.resume is None and run.command == run.path:  # else how to go on is clear, or both stages tell it
            log.info("the same command goes on from there with --out %s", run.path)
        raise
    return folder


def label_target(config: Config, restored: Restored, folder: Path, device: torch.device) -> dict[str, Any]:
    """Label the target's training images as the settings say (Eq. 9).

    Args:
        config: data set, size, cap and place of the softmax.
        restored: the network, on `device`.
        folder: where the labels go.
        device: where to compute.

    Returns:
        What `make_pseudo_labels` does.

    Raises:
        SystemExit: as that of `find_pseudo_labels`; the same call goes on from there.
    """
    with StopSignals() as stop:
        made = make_pseudo_labels(
            restored.model,
            open_part(config, "target"),
            folder,
            restored.convention,
            device,
            class_names=restored.classes.names,
            softmax_at=config.pseudo_softmax,
            cap=config.pseudo_cap,
            workers=config.workers,
            skip=config.skip_bad_files,
            stop=lambda: stop.received is not None,
            info={"checkpoint": str(restored.weights.path)},
        )
    if made is None:
        log.info("stopped by %s; the pseudo labels made so far are kept in %s", stop.received.name, folder)
        raise SystemExit(128 + stop.received)
    classes = made["classes"]
    kept, seen = (sum(entry[key] for entry in classes.values()) for key in ("kept_pixels", "predicted_pixels"))
    missing = [name for name, entry in classes.items() if not entry["predicted_pixels"]]
    log.info(
        "pseudo labels: %d images, %.1f %% of the pixels kept, %s, in %s",
        made["images"],
        100 * kept / max(seen, 1),
        f"never predicted: {', '.join(missing)}" if missing else "every class predicted",
        folder,
    )
    if stop.received is not None:  # after the last image
        log.info("stopped by %s; the pseudo labels are complete", stop.received.name)
        raise SystemExit(128 + stop.received)
    return made
