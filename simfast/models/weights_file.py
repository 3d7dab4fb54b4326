"""The tensors of a file of weights by their plain names, and what the file tells about them."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from simfast.config.classes import CITYSCAPES, Classes, classes_of
from simfast.models import checkpoint
from simfast.models.checkpoint import FORMAT
from simfast.models.deeplab import ARCHITECTURES, RESNET_STYLES
from simfast.models.formats import is_safetensors, read_safetensors

CONVENTIONS = ("bgr", "rgb")
# What programs keep a network's tensors under in a file of more, and a running average of them.
CONTAINERS = ("model", "state_dict", "model_state_dict")
AVERAGES = (
    *("model_ema", "ema_model", "ema", "teacher"),
    *("state_dict_ema", "ema_state_dict", "model_ema_state_dict", "model_state_dict_ema"),
)
SETTINGS = "simfast"
"""The entry in a safetensors file's metadata that says which network it is: JSON of "convention" and "config"."""
DEEPEST = 4  # levels of containers
# What modules around a network put in front of its names; "Scale" is AdaptSegNet's initial weights'.
WRAPPERS = ("module", "_orig_mod", "backbone", "model", "encoder_q", "Scale")
FAMILY_HEAD = re.compile(r"(layer5|layer6|classifier)\.conv2d_list\.")


class WeightsFile(NamedTuple):
    """What `read_weights` found in a file."""

    path: Path
    tensors: dict[str, Tensor]
    """By their plain names, on the CPU."""
    recorded: str | None
    """The convention that this package's checkpoint records."""
    guessed: str | None
    """The convention that the names of any other file imply."""
    settings: dict[str, Any] | None
    """The settings of the run that this package's checkpoint comes from; None for any other file."""
    notes: tuple[str, ...] = ()
    """Where in the file the tensors are, and what was in front of their names; empty where nothing is to be said."""

    @property
    def classes(self) -> Classes | None:
        """What the head of this package's checkpoint tells apart; None for any other file."""
        return None if self.settings is None else classes_of(self.settings.get("classes", CITYSCAPES))


def read_weights(path: str | Path, ema: bool = False) -> WeightsFile:
    """The tensors of a file, and what it tells about them; nothing but tensors and plain values is unpickled. Of a run
    folder, its best checkpoint's.

    Args:
        path: a file of torch.save or a safetensors file; a run folder.
        ema: take the running average of the weights that the file keeps beside them (model_ema, ema_model, the mean
            teacher of a run with online self-training ...).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind or damaged, or has no tensors, or no such average, or several networks,
            or records an unknown convention.
    """
    path = checkpoint.resolve(Path(path), "best.pt")
    outer = _content(path)
    recorded = outer.get("convention")
    if recorded is not None and recorded not in CONVENTIONS:
        raise ValueError(
            f"load_weights: the convention that {path} records must be one of {', '.join(CONVENTIONS)}, "
            f"got {recorded!r}"
        )
    where, tensors = _chosen(path, outer, ema)
    tensors, stripped = _plain_names(path, tensors)
    guessed, settings = None, None
    if outer.get("format") == FORMAT:
        settings = _settings(path, outer, "config", "network")
    elif any("Scale." in prefix for prefix in stripped) or any(FAMILY_HEAD.match(name) for name in tensors):
        guessed = "bgr"
    elif any(is_imagenet_classifier(name) for name in tensors):
        guessed = "rgb"
    notes = [f"from its {where}"] if where and (ema or settings is None) and not is_safetensors(path) else []
    notes += [f"names without {' and '.join(sorted(stripped))}"] if stripped else []
    return WeightsFile(path, tensors, recorded, guessed, settings, tuple(notes))


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings, as they were asked for, of the run that our checkpoint comes from; None for any other file.

    Raises:
        FileNotFoundError, ValueError: what `read_weights` raises of a file that cannot be read.
    """
    outer = _content(path)
    return _settings(path, outer, "config") if outer.get("format") == FORMAT else None


def is_imagenet_classifier(name: str) -> bool:
    """Whether a tensor of this name is of the classifier of torchvision's networks."""
    return re.fullmatch(r"(fc|classifier\.\d+)\.(weight|bias)", name) is not None


def require_floating(path: Path, name: str, tensor: Tensor) -> None:
    """
    Raises:
        ValueError: a weight of another kind of number, or one that is no number.
    """
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        kind = f"{tensor.dtype}" + ("" if tensor.layout == torch.strided else f", {tensor.layout}")
        raise ValueError(f"load_weights: {name} in {path} must be of real floating numbers, got {kind}")
    if not tensor.isfinite().all():
        raise ValueError(f"load_weights: {name} in {path} must be finite, got NaN or infinite values")


def few(names: list[str], limit: int = 4) -> str:
    """The first names of a list, and how many follow."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _content(path: Path) -> Mapping[str, Any]:
    """What a file holds, of safetensors in the form of a checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"load_weights: path must be a file or a run folder, got {checkpoint.missing(path)}")
    if not is_safetensors(path):
        content = checkpoint.read(path)
        if isinstance(content, Mapping) and content:
            return content
        raise ValueError(f"load_weights: {path} must hold a state dict, got {_kind(content)} without named tensors")
    tensors, metadata = read_safetensors(path)
    content = {"model": tensors}
    if SETTINGS not in metadata:
        return content
    try:
        return content | json.loads(metadata[SETTINGS]) | {"format": FORMAT}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {SETTINGS} in its metadata must be a mapping in JSON, got {error}") from None


def _settings(path: Path, outer: Mapping, *parts: str) -> dict[str, Any]:
    """What a checkpoint of ours records of its run and network; of two parts that differ, the later one counts.

    Raises:
        ValueError: it records no settings by name, or a network that there is not.
    """
    settings: dict[str, Any] = {}
    for part in parts:
        said = {} if outer.get(part) is None else outer[part]
        if not isinstance(said, dict):
            _refuse(path, part, "settings by name", said)
        settings |= said
    for name, known in (("arch", ARCHITECTURES), ("resnet_style", ("auto", *RESNET_STYLES))):
        if settings.get(name) not in (None, *known):
            _refuse(path, name, f"one of {', '.join(known)}", settings[name])
    dilations = settings.get("head_dilations")
    whole = isinstance(dilations, list | tuple) and all(type(dilation) is int for dilation in dilations)
    if dilations is not None and not whole:
        _refuse(path, "head_dilations", "whole numbers", dilations)
    return settings


def _refuse(path: Path, name: str, rule: str, found: Any) -> NoReturn:
    raise ValueError(f"load_weights: the {name} that {path} records must be {rule}, got {checkpoint.shown(found)}")


def _kind(content: Any) -> str:
    return f"a {type(content).__name__}"


def _tensors(content: Mapping) -> dict[str, Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _networks(content: Mapping, where: str = "") -> Iterator[tuple[str, bool, dict[str, Tensor]]]:
    """The networks in a file: where each is, whether it is a running average, its tensors. A mapping that has some by
    the known names has no tensors of its own."""
    found = False
    for key, value in content.items():
        if isinstance(value, Mapping) and str(key) in (*CONTAINERS, *AVERAGES) and where.count(".") < DEEPEST:
            for place, average, tensors in _networks(value, f"{where}.{key}" if where else str(key)):
                found = True
                yield place, average or str(key) in AVERAGES, tensors
    if found or not (own := _tensors(content)):
        return
    for name in AVERAGES:  # a module that holds both
        if averaged := {key.removeprefix(f"{name}."): own.pop(key) for key in list(own) if key.startswith(f"{name}.")}:
            yield f"{where or 'tensors'} {name}.*", True, averaged
    if own:
        yield where, False, own


def _chosen(path: Path, outer: Mapping, ema: bool) -> tuple[str, dict[str, Tensor]]:
    """The network that is meant, and where it is."""
    networks = list(_networks(outer))
    meant = [(where, tensors) for where, average, tensors in networks if average == ema]
    if len(meant) == 1:
        return meant[0]
    there = ", ".join(where or "a state dict" for where, _, _ in networks)
    if meant:
        raise ValueError(
            f"load_weights: {path} must have one network{' average' if ema else ''}, got several ({there}): save the "
            f"one that is meant by itself"
        )
    if ema:
        raise ValueError(
            f"ema: {path} must keep a running average ({', '.join(AVERAGES)}), got {there or 'no tensors'}"
        )
    if networks:
        raise ValueError(f"load_weights: {path} must have the weights themselves, got {there} alone: --ema takes it")
    keys = few([f"{key} ({type(value).__name__})" for key, value in outer.items()])
    raise ValueError(
        f"load_weights: {path} must hold a state dict, by itself or as one of {', '.join(CONTAINERS)}, got "
        f"{_kind(outer)} without named tensors: {keys or 'empty'}"
    )


def _plain_names(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors without what wrappers put in front of their names, and what that was."""
    plain: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for whole, tensor in tensors.items():
        name = whole
        while (parts := name.partition("."))[0] in WRAPPERS and parts[2]:
            name = parts[2]
        if name in plain:
            raise ValueError(
                f"load_weights: {path} must have one network, got two tensors for {name}: {origin[name]} and {whole}; "
                f"save the network that is meant by itself"
            )
        plain[name], origin[name] = tensor, whole
    return plain, {whole.removesuffix(name) for name, whole in origin.items() if whole != name}
