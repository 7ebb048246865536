"""Loads YAML whose aliases stand for a limited number of values: nine lines can stand for billions; and reads words."""

from collections.abc import Iterable
from typing import Any

import yaml

LONGEST = 100  # letters of a number: Python takes minutes for a million digits in base 60, and prints none of 5,000
MOST = 100_000  # values, where each use of an alias counts all values that it stands for


class BoundedLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's safe loader; it raises YAMLError for aliases without end, before anything is built."""

    def get_single_node(self) -> yaml.Node | None:
        """Returns the tree of a document, in which a value that is used twice is one node."""
        try:
            node = super().get_single_node()
            _count(node, {})
        except RecursionError as error:
            raise yaml.YAMLError("it is nested too deeply") from error
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Returns a whole number, unless it is absurdly long."""
        if len(node.value) > LONGEST:
            raise yaml.YAMLError(f"it holds a number of {len(node.value):,} digits")
        return super().construct_yaml_int(node)  # type: ignore[no-any-return]


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_yaml_int)


def load_bounded(text: str) -> Any:
    """Loads a YAML document.

    Raises:
        yaml.YAMLError: when it is no YAML, stands for too many values, or contains itself.
    """
    return yaml.load(text, BoundedLoader)  # no less safe than `safe_load`


def check_aliases(text: str) -> None:
    """Raises YAMLError for text that another loader should not load; see `load_bounded`."""
    if "&" in text and "*" in text:
        BoundedLoader(text).get_single_node()


def read_by_yaml_as(value: str, words: Iterable[str]) -> list[str]:
    """Returns those of some words that YAML reads as another value, shown as `value`: for `True` the word `on`."""
    return [word for word in words if word != value and str(_read_by_yaml(word)) == value]


def _read_by_yaml(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except (yaml.YAMLError, ValueError):  # a colon, or an impossible date
        return word


def _count(node: yaml.Node | None, known: dict[int, int | None]) -> int:
    """Returns for how many values a node stands.

    Args:
        node: of a document; None for an empty one.
        known: numbers of nodes by their id, None for those that are being counted.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        children = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    if (number := known[id(node)]) is None:
        raise yaml.YAMLError("it contains itself")
    if number > MOST:
        raise yaml.YAMLError(f"its aliases stand for more than {MOST:,} values")
    return number
