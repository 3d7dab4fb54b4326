"""The commands of `simfast` about data alone: what each reads from the command line, and what it calls."""

import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from simfast.config import Config
from simfast.config.config import OF_EACH_SOURCE

log = logging.getLogger("simfast")

START = ("preset", "config")
# Where a part of the data is, and what it is in training.
TARGET = ("target", "target_root", "target_labels", "target_ids", "target_size")
HELD_OUT = ("eval_split", "eval_images", "eval_labels")
DATA = (
    *("classes", *OF_EACH_SOURCE, "source_size", *TARGET, "target_split", *HELD_OUT, "report_split"),
    *("method", "cache", "workers"),
)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Fill --cache with resized images and labels, so that training decodes no PNG.

    Give the settings that training will be given. What is there already is kept.
    """

    READS: ClassVar[Sequence[str]] = (*START, *DATA)

    config: Config

    def run(self) -> int:
        from simfast.data import open_dataset
        from simfast.data.parts import arguments_of, require_own_parts
        from simfast.data.prepare import prepare

        config = self.config
        if config.cache is None:
            raise ValueError("cache: must name the folder to fill, got none")
        require_own_parts(config)
        for part, arguments in arguments_of(config).items():
            log.info("%s: %s", part, prepare(open_dataset(**arguments), config.cache, config.workers))
        log.info("train with the same settings and --cache %s", config.cache)
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckData:
    """Read every file that training with these settings would read; list what is missing, broken or suspicious.

    Warnings are of what can be read, but is probably not meant. The exit status is 1 where there are problems.
    """

    READS: ClassVar[Sequence[str]] = (*START, *DATA)

    config: Config

    def run(self) -> int:
        from simfast.data.check import check_part, report_text
        from simfast.data.overlap import overlaps
        from simfast.data.parts import arguments_of, require_own_parts

        config = self.config
        require_own_parts(config)
        parts = arguments_of(config).items()
        found = {
            part: check_part(**arguments, workers=config.workers, cache=config.cache, part=part)
            for part, arguments in parts
        }
        for part, sentences in overlaps(config, {part: report.files for part, report in found.items()}).items():
            told = found[part].problems if config.method == "target-only" else found[part].warnings
            told.extend(sentences)
        log.info("%s", report_text(found, config.classes))
        return int(any(part.problems for part in found.values()))


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Print a class list as a file that --classes takes."""

    READS: ClassVar[Sequence[str]] = ()

    name: Annotated[Positional[str], arg(metavar="NAME|FILE|RUN")]
    """cityscapes, camvid or synthia; a file of classes or of settings; or a run folder or checkpoint."""
    config: Config

    def run(self) -> int:
        from simfast.cli.kept import settings_in
        from simfast.config.classes import BUILT_IN, classes_of

        path = Path(self.name)
        if self.name not in BUILT_IN and (path.is_dir() or path.suffix in (".pt", ".pth", ".safetensors")):
            from simfast.models import checkpoint
            from simfast.models.weights_file import read_settings

            path = checkpoint.resolve(path, "best.pt")
            settings = read_settings(path) if path.is_file() else None
            if settings is None:
                came = "weights without settings" if path.is_file() else checkpoint.missing(path)
                rule = "must be a run folder or one of its checkpoints, which keep the class list"
                raise ValueError(f"classes: {self.name} {rule}, got {came}")
            classes = Config.from_dict(settings, str(path)).classes
        elif self.name not in BUILT_IN and (settings := settings_in(path)) is not None:
            classes = Config.from_dict(settings, self.name).classes
        else:
            classes = classes_of(self.name)
        if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the terminal's encoding is: it is to be a file
            sys.stdout.reconfigure(encoding="utf-8")
        print(classes.text(), end="")
        return 0
