"""What a run looks at before its first step: a sample of its data, so that what is wrong shows now, not hours later."""

import logging
from collections.abc import Mapping

from simfast.config import Config
from simfast.data.check import SAMPLE, check_sample, require_sound
from simfast.data.order import Dataset, Mixture
from simfast.data.parts import source_parts

log = logging.getLogger("simfast")

SECONDS = 3.0
"""For all parts together, as far as they are labelled at all."""


def first_look(
    config: Config,
    labelled: Dataset | Mixture,
    target: Dataset | None,
    scored: Mapping[str, Dataset | None],
    pseudo: bool,
) -> None:
    """Checks a sample of each part as `simfast check-data` checks all of it, and logs what is suspicious.

    Args:
        config: the run's settings.
        labelled: what is trained on with labels.
        target: what is adapted to, if anything.
        scored: what is scored on, if anything, by its part: "held-out", "report".
        pseudo: whether the target's labels are a network's, which are not judged.

    Raises:
        ValueError: what cannot be read or trained on.
    """
    if config.method == "target-only":
        parts = {"target": labelled}
    else:
        sources = labelled.datasets if isinstance(labelled, Mixture) else (labelled,)
        parts = dict(zip(source_parts(config), sources, strict=True)) | {"target": target}
    parts = {part: dataset for part, dataset in (parts | dict(scored)).items() if dataset is not None}
    warned = False
    for part, dataset in parts.items():
        found = check_sample(dataset, part, SECONDS / len(parts), labels=not (pseudo and part == "target"))
        for text in require_sound(found, part, config):
            log.warning("%s: %s", part, text)
            warned = True
    if warned:
        log.warning("seen in a sample of up to %d files of each part; `simfast check-data` reads all of them", SAMPLE)
