"""All settings of a run as one frozen dataclass: what goes together, and how they are stored."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from simfast.config.bounds import BOUNDS
from simfast.config.settings import GROUPS, Data, Fuse, Losses, Matching, Model, Run, Step


def _require(holds: bool, name: str, rule: str | None, came: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: {rule}, got {came!r}")


class Source(NamedTuple):
    """One of the labelled data sets of a run; see the settings of these names."""

    name: str
    root: Path | None
    split: str
    labels: str | None
    ids: Path | None
    images: Path | None
    share: int


# What is said of each source, by the field of `Source`.
OF_EACH_SOURCE = {"source" if field == "name" else f"source_{field}": field for field in Source._fields}


@dataclass(frozen=True)
class Config(Step, Matching, Losses, Model, Data, Run):
    """Adapt a segmentation network from a labelled source to an unlabelled target by stuff and instance matching.

    Its fields are those of the six groups of `simfast.config.settings`, in one name space.

    Raises:
        ValueError: values that are out of range or do not go together; names the setting, the rule and what came.
    """

    def __post_init__(self):
        for name, bound in BOUNDS.items():
            value = getattr(self, name)
            rule = None if value is None else bound.breach(value)
            _require(rule is None, name, rule, value)
        for name in OF_EACH_SOURCE:
            rule = f"must be one, or one for each source ({len(self.source)})"
            own = getattr(self, name)
            came = [str(value) if isinstance(value, Path) else value for value in own]
            _require(len(own) in {1, len(self.source)}, name, rule, came)
        if (self.eval_images is None) != (self.eval_labels is None):
            given, missing = ("images", "labels") if self.eval_labels is None else ("labels", "images")
            _require(False, f"eval_{missing}", f"must be given with --eval-{given}", None)
        allowed = ("auto", *self.classes.sets)
        rule = f"must be one of {', '.join(allowed)} with the classes {self.classes.title}"
        _require(self.score_classes in allowed, "score_classes", rule, self.score_classes)
        if self.stage == 2:
            rule = "must be stage 1's run folder or a checkpoint for --stage 2 (or give --pseudo-labels)"
            _require(bool(self.stage1 or self.pseudo_labels), "stage1", rule, self.stage1)
        if self.method == "target-only":
            _require(self.stage == 1, "stage", "must be 1 with target-only, which needs no pseudo labels", self.stage)
            _require(self.transfer == "none", "transfer", "must be none with target-only", self.transfer)
        if self.self_training == "online":
            rule = "must be none where no target image passes through the network in training"
            _require(self.uses_target, "self_training", rule, self.self_training)
        if self.batch_norm == "per-domain":
            rule = "must be train or frozen where no target image passes through the network in training"
            _require(self.uses_target, "batch_norm", rule, self.batch_norm)
        _require(not self.nesterov or self.momentum > 0, "momentum", "must be positive for nesterov", self.momentum)
        alone = len(self.fuse) == 1 or not {"none", "all"} & set(self.fuse)
        _require(bool(self.fuse) and alone, "fuse", "must be none, all, or some of the parts", list(self.fuse))
        given = self.head_dilations is None or len(self.head_dilations) > 0
        _require(given, "head_dilations", "must be one or more", self.head_dilations)
        _require(
            self.schedule_steps >= self.steps,
            "schedule_steps",
            f"must be at least steps ({self.steps})",
            self.schedule_steps,
        )

    @property
    def adversarial(self) -> bool:
        """Whether the method has a discriminator."""
        return self.method in ("aa", "aa+sim")

    @property
    def uses_target(self) -> bool:
        """Whether target images pass through the network in training, beside the labelled ones."""
        return self.adversarial or self.stage != 1

    @property
    def trains_on_target(self) -> bool:
        """Whether training reads target images at all."""
        return self.uses_target or self.transfer != "none" or self.method == "target-only"

    @property
    def fused(self) -> frozenset[str]:
        """The parts of the step that run fused: `fuse` with what it implies; so does low memory."""
        parts = set(self.fuse) - {"none"}
        if "all" in parts:
            parts = set(get_args(Fuse)) - {"none", "all"}
        if parts & {"cooperative", "products"} or self.memory == "low":
            parts.add("norms")
        return frozenset(parts)

    @property
    def sources(self) -> list[Source]:
        """The labelled data sets, one or several."""
        fields = (
            (own * len(self.source) if len(own) == 1 else own) for own in map(self.__getattribute__, OF_EACH_SOURCE)
        )
        return [Source(*values) for values in zip(*fields, strict=True)]

    @property
    def scored(self) -> bool:
        """Whether there are labels of the target to evaluate on."""
        return self.eval_images is not None or self.eval_split != "none"

    @property
    def row(self) -> str:
        """What was trained, in the words of the paper's tables: aa+it-fda+sim+ssl, say."""
        transfers = [] if self.transfer == "none" else [self.transfer]
        transfers += ["images"] if any(self.source_images) else []
        transferred = "".join(f"+it-{name}" for name in transfers)
        first, *rest = self.method.split("+")
        rest += ["online"] if self.self_training == "online" else []
        return "+".join([first + transferred, *rest, *([] if self.stage == 1 else ["ssl"])])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists by setting, for checkpoints."""
        settings = self._listed()
        return {
            key: value[0] if key in OF_EACH_SOURCE and len(value) == 1 else value for key, value in settings.items()
        }

    def _listed(self) -> dict[str, Any]:
        """The same, with what is said of each source as a list."""
        import pydantic  # here and below: a step alone does without it

        return pydantic.TypeAdapter(Config).dump_python(self, mode="json")

    def portable(self) -> dict[str, dict[str, Any]]:
        """`to_dict` by group, without what belongs to one run alone: a settings file that --config takes."""
        settings = self.to_dict()
        return {
            name: {key: settings[key] for key in names(group) if key not in COMMAND_LINE_ONLY}
            for name, group in GROUPS.items()
        }

    @staticmethod
    def from_dict(settings: dict[str, Any], where: str, base: "Config | None" = None) -> "Config":
        """`base` with some settings replaced; without it, the settings of a run, perhaps an older one.

        Args:
            settings: values by setting, in their groups or without (as older runs stored them).
            where: where they came from, for the error.
            base: what they change.

        Raises:
            ValueError: an unknown key (naming the closest one), one in the wrong group, or a bad value; names `where`.
        """
        import pydantic

        settings = flattened(settings, where)
        for name in OF_EACH_SOURCE.keys() & settings.keys():
            settings[name] = value if isinstance(value := settings[name], list | tuple) else [value]
        if type(settings.get("score_classes")) is int:  # older runs, and YAML
            settings["score_classes"] = str(settings["score_classes"])
        for name in BOUNDS.keys() | {"stage"}:
            value = settings.get(name)
            if any(isinstance(one, bool) for one in (value if isinstance(value, list | tuple) else [value])):
                raise ValueError(f"{where}: {name}: must be a number, got {value!r}")
        try:
            before = (Config() if base is None else base)._listed() | (OLDER_RUNS if base is None else {})
            return pydantic.TypeAdapter(Config).validate_python(before | settings)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":  # ours, which says what came
                raise ValueError(f"{where}: {first['ctx']['error']}") from None
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {key + ': ' if key else ''}{first['msg']}, got {first['input']!r}") from None


def told_apart(key: str, before: Config, now: Config) -> tuple[Any, Any]:
    """A setting of two runs in which it differs, for an error: class lists by their titles, the rest as stored."""
    if key != "classes":
        return before.to_dict()[key], now.to_dict()[key]
    old, new = str(before.classes), str(now.classes)
    return old, f"{new} of other content" if old == new else new


def of_what_kind(key: str, config: Config) -> Any:
    """What of a setting stays, wherever the data lie: whether there are such at all, where that is another method."""
    value = getattr(config, key)
    if key == "source_images":
        return [source.images is not None for source in config.sources]
    return {"eval_images": value is None, "eval_split": value == "none"}.get(key)


def names(group: type) -> list[str]:
    """The settings of a group."""
    return [field.name for field in dataclasses.fields(group)]


def flattened(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Values by setting, of a mapping in which they may stand in their groups.

    Raises:
        ValueError: an unknown key, naming the closest one; a setting in a group that is not its own, or twice.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        group = GROUPS.get(key)
        if group is not None and not isinstance(value, dict | None):
            raise ValueError(f"{where}: {key} must be a mapping of settings, got {value!r}")
        for name, one in [(key, value)] if group is None else (value or {}).items():
            name = str(name).replace("-", "_")
            own = next((other for other, fields in GROUPS.items() if name in names(fields)), None)
            if own is None:
                known = [*names(Config), *GROUPS]
                closest = difflib.get_close_matches(name, known, n=1, cutoff=0)
                raise ValueError(f"{where}: unknown key {name!r}; the closest one is {closest[0]!r}")
            if group is not None and own != key:
                raise ValueError(f"{where}: {name} belongs to {own}, got it in {key}")
            if name in found:
                raise ValueError(f"{where}: {name} must be given once, got {found[name]!r} and {one!r}")
            found[name] = one
    return found


# What runs did that do not name the setting, where that is not its default.
OLDER_RUNS = {"bank_dtype": "float32"}
COMMAND_LINE_ONLY = {"config", "out", "resume"}
# What may differ between a run and its continuation: nothing that changes the bits of the steps in between.
FREE_ON_RESUME = COMMAND_LINE_ONLY | {"cache", "workers", "log_every", "eval_every", "panel_images", "steps"}
# Where the data lie and what computes, which may also differ: the files' names are compared when they are opened.
MOVABLE = {
    *("source_root", "source_split", "source_labels", "source_ids", "source_images"),
    *("target_root", "target_split", "target_labels", "target_ids"),
    *("eval_split", "eval_images", "eval_labels", "report_split"),
    *("pseudo_labels", "stage1", "weights", "device", "step_mode", "engines", "skip_bad_files"),
}
