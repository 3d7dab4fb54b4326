"""Settings from a command line, where a command has any: which come first, and which a resumed run keeps."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

import tyro
from tyro.conf import OmitArgPrefixes, Suppress, UseAppendAction

from simfast.cli.kept import APART, OF_THE_TARGET, begun, resumed, without_other_data
from simfast.config import COMMAND_LINE_ONLY, Config
from simfast.config.classes import Classes, classes_of
from simfast.config.config import OF_EACH_SOURCE, flattened, names
from simfast.config.presets import PRESETS, RECIPES, of_recipe
from simfast.config.settings import GROUPS
from simfast.config.yaml_text import read_mapping

DESCRIPTION = """Adapt semantic segmentation by stuff and instance matching (SIM, CVPR 2020).

simfast COMMAND --help explains a command, simfast --version says which this is.

Completion: simfast --tyro-print-completion bash (zsh, tcsh), to be sourced."""


CLASSES = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME|FILE",
    instance_from_str=lambda given: classes_of(given[0]),
    is_instance=lambda value: isinstance(value, Classes),
    str_from_instance=lambda classes: [classes.title],
)


class Start(NamedTuple):
    """The options that decide what the others change, as they were given; None where they were not."""

    preset: str | None = None
    recipe: str | None = None
    arch: str | None = None
    config: str | None = None
    resume: str | None = None
    device: str | None = None
    stage: str | None = None
    stage1: str | None = None
    eval_images: str | None = None
    source: Sequence[str] = ()
    target: str | None = None
    eval_split: str | None = None
    classes: str | None = None
    checkpoint: Path | None = None


def parse(argv: Sequence[str], commands: dict[str, type]) -> Any:
    """The command of a command line, with all that its settings follow from resolved: preset, recipe, file, checkpoint,
    resumed run.

    Args:
        argv: the command's name and its options.
        commands: dataclasses by name. A field `config` holds the settings, of which the class attribute READS names
            those that can be given; the docstrings are the help.

    Raises:
        SystemExit: after printing what was wrong with the command line, or its help.
        ValueError, OSError: naming the file or setting.
    """
    command, base = commands.get(argv[0]), Config()
    if command is not None:
        base = starting_point(_start(command, argv[1:]), getattr(command, "CHECKPOINT", "best.pt"))
    kinds = []
    for name, one in commands.items():
        about = inspect.getdoc(one)
        about = _wrapped(about) if one is command else about.splitlines()[0]
        described = tyro.conf.subcommand(name, description=about)
        kinds.append(Annotated[_options(one, base if one is command else Config()), described])
    found = tyro.cli(Union[tuple(kinds)], args=argv, prog="simfast", description=_wrapped(DESCRIPTION))  # noqa: UP007
    settings = {name: getattr(group, name) for group in _groups(found) for name in names(type(group))}
    settings = {name: value for name, value in settings.items() if name not in OF_EACH_SOURCE or value}
    config = dataclasses.replace(base, **settings)
    if config.resume is not None and "resume" in command.READS:
        config = resumed(config, base)
    own = {name: getattr(found, name) for name in names(command) if name != "config"}
    return command(**own, config=config)


def starting_point(start: Start, checkpoint_name: str = "best.pt") -> Config:
    """What a command line's settings change: a resumed run's, or those of checkpoint, preset, recipe and file.

    Settings stored with a checkpoint are the starting point where no preset or file is named, and their recipe is where
    none is.

    Args:
        start: what was given.
        checkpoint_name: which of a run folder's checkpoints is meant.

    Raises:
        ValueError, OSError: naming the file or setting.
    """
    if start.resume is not None:
        if start.config is not None:
            raise ValueError(f"config: a resumed run has its own settings, got {start.config} for {start.resume}")
        return begun(Path(start.resume))
    stored = _stored(start, checkpoint_name)
    settings = _read_settings(Path(start.config)) if start.config is not None else {}
    settings = without_other_data(settings, start.source, start.target)
    recipe = start.recipe or settings.get("recipe", stored.recipe if stored else "paper")
    if recipe not in list(RECIPES):  # whatever a file holds: what has no hash is in no mapping
        raise ValueError(f"recipe: must be one of {', '.join(RECIPES)}, got {recipe!r}")
    source, target = start.source or settings.get("source", ()), start.target or settings.get("target")
    if stored is not None and start.preset is None and start.config is None:
        base = _of_data(dataclasses.replace(stored, out=None, resume=None), source, target)
        if start.recipe is not None:
            base = Config.from_dict(of_recipe(recipe, start.arch or base.arch), "recipe", base)
        if start.eval_images is not None and Path(start.eval_images) != stored.eval_images:
            base = dataclasses.replace(base, target_ids=None, **dict.fromkeys(APART))  # of the run's own labels
        return _asked(_of_network(base, stored, start), start)
    preset = start.preset or settings.get("preset", "auto")
    if preset == "auto":
        preset = "streets-gpu" if _gpu_is_meant(start.device or settings.get("device", "auto")) else "streets"
    if preset not in list(PRESETS):
        raise ValueError(f"preset: must be one of auto, {', '.join(PRESETS)}, got {preset!r}")
    base = dataclasses.replace(PRESETS[preset], preset=preset)
    arch = start.arch or settings.get("arch", base.arch)
    base = Config.from_dict(of_recipe(recipe, arch), "recipe", base)
    if stored is not None:  # a network's classes are its own, whatever else is set
        base = dataclasses.replace(_of_classes(base, stored.classes), classes=stored.classes)
        base = _of_network(base, stored, start)
    base = _of_data(dataclasses.replace(base, recipe=recipe), source, target)
    base = _of_classes(base, settings.get("classes"))
    return _asked(Config.from_dict(settings, str(start.config), base), start)


def _of_data(base: Config, source: str | Sequence[str], target: str | None) -> Config:
    """`base` for the data sets named: what it says of its own ones, such as their splits, says nothing of others."""
    others: list[str] = []
    if source and base.source != (tuple(source) if isinstance(source, list | tuple) else (source,)):
        others += [name for name in OF_EACH_SOURCE if name != "source"]
    if target and target != base.target:
        others += OF_THE_TARGET
    return dataclasses.replace(base, **{name: getattr(Config(), name) for name in others})


def _of_classes(base: Config, classes: Any) -> Config:
    """`base` for the class list named, of which it asks for no score set that is another list's."""
    with contextlib.suppress(ValueError):  # a list that is none is told of where it is set
        if classes is not None and base.score_classes not in classes_of(classes).sets:
            return dataclasses.replace(base, score_classes="auto")
    return base


def _of_network(base: Config, stored: Config, start: Start) -> Config:
    """`base` with the head that a checkpoint is said to have, where a command is about one, whatever a recipe sets."""
    return base if start.checkpoint is None else dataclasses.replace(base, head_dilations=stored.head_dilations)


def _asked(base: Config, start: Start) -> Config:
    """`base` without what the command line speaks against: a part to score on takes the place of a set apart."""
    if start.eval_split not in (None, "none"):
        base = dataclasses.replace(base, **dict.fromkeys(APART))
    return _of_classes(base, start.classes)


# ----------------------------------------------------------------------------------------------------------------------
# A command's options
# ----------------------------------------------------------------------------------------------------------------------


def _start(command: type, argv: Sequence[str]) -> Start:
    """What decides the starting point: the command line, read for the first time."""
    options = _options(command, Config(), Start._fields)
    try:
        argv = [argument for argument in argv if argument not in ("-h", "--help")]
        with contextlib.redirect_stderr(io.StringIO()):  # where tyro writes of a bad value, whatever it is told
            found = tyro.cli(options, args=argv, console_outputs=False)
    except SystemExit:  # read for the second time, it is told what is wrong
        return Start()
    given = {name: getattr(group, name) for group in _groups(found) for name in names(type(group))}
    given = {name: value for name, value in given.items() if name in command.READS}
    given |= {name: getattr(found, name) for name in names(command) if name != "config"}
    return Start(**{name: given[name] for name in Start._fields if name in given})


def _options(command: type, base: Config, optional: Sequence[str] = ()) -> type:
    """A command with its settings in their groups, as tyro takes it.

    Args:
        command: the dataclass.
        base: the defaults.
        optional: settings that are to be None where they are not given, and whatever string where they are.
    """
    own = {field.name: field for field in dataclasses.fields(command) if field.name != "config"}
    fields: list[tuple[str, Any, Any]] = [
        (name, _explained(command, name, field.type), field) for name, field in own.items()
    ]
    for title, group in GROUPS.items():
        if not set(names(group)) & set(command.READS):
            continue
        shown: list[tuple[str, Any, Any]] = []
        for field in dataclasses.fields(group):
            kind, default = field.type, getattr(base, field.name)
            if field.name in optional and field.name not in OF_EACH_SOURCE:
                kind, default = str | None, None
            if kind is Classes:
                kind = Annotated[Classes, CLASSES]
            if field.name in OF_EACH_SOURCE:  # tyro would add to a default
                kind, default = Annotated[kind, UseAppendAction], ()
            kind = _explained(group, field.name, kind) if field.name in command.READS else Annotated[kind, Suppress]
            shown.append((field.name, kind, dataclasses.field(default=default)))
        made = dataclasses.make_dataclass(group.__name__, shown, frozen=True, namespace={"__doc__": group.__doc__})
        fields.append((title, Annotated[made, OmitArgPrefixes], dataclasses.field(default=made())))
    about = {"__doc__": command.__doc__}
    return dataclasses.make_dataclass(command.__name__, fields, frozen=True, kw_only=True, namespace=about)


def _wrapped(text: str) -> str:
    """Paragraphs in the terminal's width, which tyro prints as they are. It joins lines, but for those with a space in
    front."""
    fill = functools.partial(textwrap.fill, width=shutil.get_terminal_size().columns, subsequent_indent=" ")
    return "\n\n".join(fill(paragraph, break_on_hyphens=False) for paragraph in text.split("\n\n"))


def _explained(kind: type, name: str, of: Any) -> Any:
    """A field's type with its docstring as help, in one line: tyro's completion takes a second one for an option."""
    return Annotated[of, tyro.conf.arg(help=_docstrings(kind)[name])]


@functools.cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _groups(found: Any) -> list[Any]:
    return [getattr(found, title) for title in GROUPS if hasattr(found, title)]


# ----------------------------------------------------------------------------------------------------------------------
# Where settings come from
# ----------------------------------------------------------------------------------------------------------------------


def _gpu_is_meant(device: str) -> bool:
    import torch  # here: a command's help does without it, where it can

    return device != "cpu" and torch.cuda.is_available()


def _stored(start: Start, checkpoint_name: str) -> Config | None:
    """The settings that came with the checkpoint that a command is about, or with stage 1's for stage 2."""
    from simfast.models import checkpoint
    from simfast.models.weights_file import read_settings

    if start.checkpoint is not None:
        settings = read_settings(checkpoint.resolve(start.checkpoint, checkpoint_name))
        # A file that is not ours is used as the released code does, but which network it holds is its own.
        released = RECIPES["released"] | {"recipe": "released", "head_dilations": None}
        stored = Config.from_dict(released if settings is None else settings, str(start.checkpoint))
        return dataclasses.replace(stored, ema=False)  # that was said of the weights that the run began with
    if start.stage == "2" and start.stage1 is not None:
        # Stage 2 repeats stage 1 with pseudo labels added: its settings are the ones to repeat.
        first = checkpoint.load(checkpoint.resolve(Path(start.stage1), "best.pt", stage=1))
        return Config.from_dict(first["config"], start.stage1) if "config" in first else None
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    settings = flattened(read_mapping(path), str(path))
    for key in COMMAND_LINE_ONLY & settings.keys():
        raise ValueError(f"{path}: {key} belongs on the command line, got {settings[key]!r}")
    return settings
