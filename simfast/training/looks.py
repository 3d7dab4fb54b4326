"""What a run is looked at by between its steps: scores on held-out labels, or signals where the target has none."""

import logging
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from simfast.config import Config
from simfast.data.loader import evaluation_loader
from simfast.data.order import GO_ON, Dataset, Mixture
from simfast.data.parts import open_part, scored_classes, warn_if_void
from simfast.inference.evaluate import evaluate
from simfast.inference.signals import find_signals, label_shares, spread
from simfast.report.scores import score_row, scores_text
from simfast.report.signals import signal_row, signal_table, signal_text
from simfast.runtime import distributed
from simfast.training.modes import DTYPES
from simfast.training.step import Trainer

log = logging.getLogger("simfast")

Row = dict[str, Any]
Pictures = list[tuple[Tensor, ...]]


def is_better(row: Row, best: Row | None) -> bool:
    """Whether a look's row is to take the best one's place: the higher mIoU; of rows without one, the later."""
    if best is None or best["miou"] is None:
        return True
    return row["miou"] is not None and row["miou"] > best["miou"]


def titled(rows: dict[str, Row]) -> dict[str, Row]:
    """Rows by their names, with the steps that they are of."""
    return {f"{name} ({row['step']})": row for name, row in rows.items()}


class Scoring:
    """Scores on the held-out set.

    Attributes:
        scored: what is scored on, if anything.
        about: what is looked at, in words.
        passed_over: as `SegmentationDataset`'s.

    Args:
        config: the run's settings.
        labelled: what is trained on with labels.
        device: where to compute.

    Raises:
        ValueError: fewer images than processes, or what `open_part` and `scored_classes` raise.
    """

    def __init__(self, config: Config, labelled: Dataset | Mixture, device: torch.device):
        self._config, self.scored = config, open_part(config, "held-out")
        self.passed_over = self.scored.passed_over
        _require_images("eval_split", self.scored)
        self._class_ids, self._trained_ids = scored_classes(config, labelled, self.scored), labelled.class_ids
        self._loader = _share(self.scored, config, device)
        self.about, self._looked = f"{len(self.scored)} held-out images", False
        if config.eval_images is not None:
            instead = "" if config.eval_split == "none" else f", in place of the target's {config.eval_split!r}"
            self.about += f" ({config.eval_images}{instead})"

    def look(self, trainer: Trainer) -> tuple[Row, Pictures]:
        """A row of metrics, and pictures for a panel; the processes' buffers are to be shared before."""
        scores, pictures = evaluate(
            trainer.networks.evaluated(),
            self._loader,
            self._class_ids,
            trainer.convention,
            trainer.device,
            self._config.panel_images,
            labelled_ids=self.scored.class_ids,
            sets=self._config.classes.sets,
            total=distributed.total,
            dtype=DTYPES[trainer.precision],
        )
        row = score_row(scores, self._config.classes)
        if not self._looked:
            warn_if_void(row, self.scored)
        self._looked = True
        return row, pictures

    def shown(self, row: Row) -> tuple[str, float | None]:
        """What of a row stands on the bar, in [0, 1]."""
        return "mIoU", row["miou"]

    def line(self, row: Row, best: Row) -> str:
        """A row for the log."""
        if row["miou"] is None:
            return "no class has an IoU"
        return f"mIoU {100 * row['miou']:.2f} %, best {100 * best['miou']:.2f} %"

    def table(self, rows: dict[str, Row]) -> str:
        """The rows "last" and "best", of result.json."""
        where = self._config.eval_images or self._config.eval_split
        return f"{where}\n{scores_text(titled(rows), self._config.classes, self._class_ids, self._trained_ids)}"

    def found(self) -> dict[str, Any]:
        """What a result says beside its rows."""
        return {}


class Watching:
    """Signals on a sample of the target's training images, but those of bad files that may be; arguments and the rest
    as `Scoring`."""

    def __init__(self, config: Config, labelled: Dataset | Mixture, device: torch.device):
        target = open_part(config, "photographs")
        self.scored, self.passed_over = None, target.passed_over
        _require_images("target", target)
        places = spread(len(target))
        self._config, self._loader = config, _share(target, config, device, places, config.skip_bad_files)
        self._shares, counted = distributed.on_lead(_shares_of, labelled, config)
        self.about = f"no labels to score on, signals on {len(places)} of {len(target)} target images"
        self._found = {"images": len(places), "label_maps": counted, "pseudo_cap": config.pseudo_cap}

    def look(self, trainer: Trainer) -> tuple[Row, Pictures]:
        signals, pictures = find_signals(
            trainer.networks.evaluated(),
            self._loader,
            trainer.convention,
            trainer.device,
            self._config.pseudo_cap,
            self._config.panel_images,
            total=distributed.total,
            dtype=DTYPES[trainer.precision],
        )
        self._found["images"] = signals.images
        return signal_row(signals, self._shares, self._config.classes.names), pictures

    def shown(self, row: Row) -> tuple[str, float | None]:
        return "mirror", row["mirror"]

    def line(self, row: Row, best: Row) -> str:
        return signal_text(row, self._config.pseudo_cap)

    def table(self, rows: dict[str, Row]) -> str:
        last = titled({"last": rows["last"]})
        return f"no labels to score on, best is last\n{signal_table(last, self._label_shares)}"

    def found(self) -> dict[str, Any]:
        return {"signals": self._found | {"label_shares": self._label_shares}}

    @property
    def _label_shares(self) -> dict[str, float]:
        return dict(zip(self._config.classes.names, self._shares, strict=True))


def _shares_of(labelled: Dataset | Mixture, config: Config) -> tuple[list[float], int]:
    """The share of each class in the labels trained on, and in how many label maps it was counted; of a mixture, a
    sample of each data set, which counts by its share."""
    datasets, weights = (labelled.datasets, labelled.shares) if isinstance(labelled, Mixture) else ([labelled], [1])
    counted: list[int] = []
    maps = (_good_labels(dataset, config.skip_bad_files, counted) for dataset in datasets)
    found = [label_shares(own, len(config.classes)) for own in maps]
    mixed = [sum(map(operator.mul, weights, shares)) / sum(weights) for shares in zip(*found, strict=True)]
    return mixed, len(counted)


def _good_labels(dataset: Dataset, skip: int, counted: list[int]) -> Iterator[Tensor]:
    """A sample of label maps but those, up to `skip`, that are bad: training names them where it meets them.

    Args:
        counted: takes up their places.

    Raises:
        ValueError: one bad label map more.
    """
    bad = 0
    for place in spread(len(dataset)):
        try:
            label = dataset.label(place)
        except (ValueError, OSError) as error:
            bad += 1
            if bad > skip:
                raise ValueError(f"{error} ({GO_ON})") from error
        else:
            counted.append(place)
            yield label


def _share(
    dataset: Dataset, config: Config, device: torch.device, items: list[int] | None = None, skip: int | None = None
):
    """This process's share of a data set in order, or of some of its items."""
    share = {"rank": distributed.rank(), "ranks": distributed.size()}
    return evaluation_loader(dataset, 1, config.workers, device, **share, items=items, skip=skip)


def _require_images(name: str, dataset: Dataset) -> None:
    if len(dataset) < distributed.size():
        rule = f"must have an image for each of {distributed.size()} processes"
        raise ValueError(f"{name}: {rule}, got {len(dataset)}")
