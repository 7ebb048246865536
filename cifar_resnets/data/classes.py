"""Chooses some classes of a source, and relabels their images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.errors import ConfigurationError, require
from cifar_resnets.support.bounded_yaml import read_by_yaml_as


def chosen_classes(given: Sequence[str] | None, source: Sequence[str], at_least: int) -> list[str]:
    """Returns the classes that are used, in the order of the labels: those given, or all of the source.

    Raises:
        ConfigurationError: for a class that the source lacks, one given twice, or fewer than `at_least`.
    """
    if given is None:
        return list(source)
    unknown = [name for name in given if name not in source]
    for name in unknown:
        if meant := read_by_yaml_as(name, source):
            words = " or ".join(meant)
            raise ConfigurationError(f'data.classes: YAML reads {words} as {name}, quote it: "{meant[0]}"')
    require("data", not unknown, "classes", unknown, f"some of {', '.join(source)}")
    allowed = f"{'two' if at_least == 2 else 'one'} or more, each once"
    require("data", len(set(given)) == len(given) >= at_least, "classes", given, allowed)
    return list(given)


def relabelled(
    labels: NDArray[np.int64], source: Sequence[str], names: Sequence[str], order: Sequence[str]
) -> NDArray[np.int64]:
    """Returns labels (n,) of the source's classes as positions in `order`; -1 for a class that is not among `names`."""
    if list(names) == list(source) == list(order):
        return labels
    new_label = np.full(len(source), -1)
    new_label[[source.index(name) for name in names]] = [order.index(name) for name in names]
    return new_label[labels]
