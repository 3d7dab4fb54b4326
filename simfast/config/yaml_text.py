"""YAML that a user writes or is shown; imported where it is needed alone: operations and networks do without."""

import itertools
from pathlib import Path
from typing import Any

import yaml


class _Plain(yaml.SafeLoader):
    """YAML without what would quietly be something else: a key that stands twice, of which the last would count, and
    whole numbers that are not what they look like, as 010 is 8 and 1:30 is 90."""

    def construct_yaml_int(self, node):
        value, text = super().construct_yaml_int(node), self.construct_scalar(node)
        digits = text.lstrip("+-").replace("_", "").lower()
        if not digits.startswith(("0x", "0b")) and not (digits.isdigit() and int(digits) == abs(value)):
            problem = f"{text}, which YAML takes for {value}: it must be written as a decimal number without 0 in front"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node, deep=False):
        keys = [str(key.value) for key, _ in node.value]
        if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
            raise yaml.constructor.ConstructorError(problem=f"the key {twice} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)


def read_yaml(text: str) -> Any:
    """What a YAML file of a user's holds, in plain values.

    Raises:
        ValueError: it is none, a key stands twice, a number is not what it looks like, or it is nested too deeply.
    """
    try:
        return yaml.load(text, _Plain)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("lists or mappings nested too deeply") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file of settings holds.

    Raises:
        ValueError: it is no mapping in YAML and UTF-8; names the file.
        OSError: it cannot be read.
    """
    text = path.read_bytes()
    try:
        loaded = read_yaml(text.decode("utf-8-sig"))
    except ValueError as error:
        came = "an empty file" if is_empty(text) else error
        raise ValueError(f"{path}: must be a readable YAML file, got {came}") from error
    if not isinstance(loaded, dict):
        came = "an empty file" if loaded is None else type(loaded).__name__
        raise ValueError(f"{path}: must hold a mapping of settings, got {came}")
    return loaded


def is_empty(content: bytes) -> bool:
    """Whether a file's content is what a power loss may leave of one: nothing, or zeros."""
    return not content.strip(b"\0 \n")


def one_line(value: Any) -> str:
    """Plain values as YAML on one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return "".join(itertools.takewhile(lambda line: line != "...\n", dumped.splitlines(keepends=True))).strip()
