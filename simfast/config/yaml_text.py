"""YAML that a user writes or is shown; imported where it is needed alone: operations and networks do without."""

import itertools
from typing import Any

import yaml


class _UniqueKeys(yaml.SafeLoader):
    """YAML without a key that stands twice, of which the last would quietly count."""

    def construct_mapping(self, node, deep=False):
        keys = [str(key.value) for key, _ in node.value]
        if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
            raise yaml.constructor.ConstructorError(problem=f"the key {twice} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a YAML file of a user's holds, in plain values.

    Raises:
        ValueError: it is none, or a key stands twice.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def one_line(value: Any) -> str:
    """Plain values as YAML on one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return "".join(itertools.takewhile(lambda line: line != "...\n", dumped.splitlines(keepends=True))).strip()
