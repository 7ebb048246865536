"""Compares two evaluations of the same images: which changed, and whether the difference is significant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.results.csv_files import Predictions

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """The difference between two networks on the images of a class, or on all images.

    Args:
        correct: number of images that the first and the second network classify correctly.
        newly_right: number of images that only the second network classifies correctly.
        newly_wrong: number of images that only the first network classifies correctly.
        p_value: of McNemar's test; corrected if it is one of several.
    """

    name: str
    images: int
    correct: tuple[int, int]
    newly_right: int
    newly_wrong: int
    p_value: float

    @property
    def accuracies(self) -> tuple[float | None, float | None]:
        """Returns the accuracies of the first and the second network; None without images."""
        first, second = (correct / self.images if self.images else None for correct in self.correct)
        return first, second

    @property
    def change(self) -> float:
        """Returns the change of the accuracy from the first to the second network, from -1 to 1; 0 without images."""
        return (self.correct[1] - self.correct[0]) / max(self.images, 1)


@dataclass(frozen=True)
class Comparison:
    """All differences between two networks, those on each class with p-values corrected by `holm`.

    Args:
        newly_right: positions in the data of the images that only the second network classifies correctly.
        newly_wrong: positions of those that only the first network classifies correctly.
    """

    overall: Difference
    classes: list[Difference]
    newly_right: NDArray[np.int64]
    newly_wrong: NDArray[np.int64]


def compare(first: Predictions, second: Predictions) -> Comparison:
    """Compares two evaluations of the same images.

    Raises:
        ValueError: if they are not of the same images; the message says why.
    """
    if len(first.labels) != len(second.labels):
        raise ValueError(f"they tested {len(first.labels):,} and {len(second.labels):,} images")
    if first.label_names != second.label_names:
        raise ValueError("they tested images of other classes, or in another order")
    right = first.labels == first.predicted, second.labels == second.predicted
    each = [_difference(name, first.labels == label, *right) for label, name in enumerate(first.class_names)]
    corrected = holm([difference.p_value for difference in each])
    classes = [replace(difference, p_value=p) for difference, p in zip(each, corrected, strict=True)]
    overall = _difference("all", np.ones_like(right[0]), *right)
    return Comparison(overall, classes, np.flatnonzero(~right[0] & right[1]), np.flatnonzero(right[0] & ~right[1]))


def _difference(name: str, of: Mask, first: Mask, second: Mask) -> Difference:
    newly_right, newly_wrong = int((of & ~first & second).sum()), int((of & first & ~second).sum())
    correct = int((of & first).sum()), int((of & second).sum())
    return Difference(name, int(of.sum()), correct, newly_right, newly_wrong, mcnemar(newly_right, newly_wrong))


def mcnemar(newly_right: int, newly_wrong: int) -> float:
    """Returns the p-value of the exact two-sided McNemar test that two networks are equally good.

    Source: McNemar (1947), "Note on the sampling error of the difference between correlated proportions or
    percentages". Departure: the binomial distribution itself, not its approximation by chi-squared, which is wrong for
    few images.
    """
    if newly_right == newly_wrong:
        return 1.0
    from scipy.stats import binomtest  # takes half a second

    return float(binomtest(newly_right, newly_right + newly_wrong).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, so that the family-wise error rate stays below the level.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Returns the dotted keys whose values differ, with the value in each configuration; None for a missing key."""
    flat = [flat_settings(config) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = {key: [each.get(key) for each in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def flat_settings(config: Any, prefix: str = "") -> dict[str, str]:
    """Flattens a configuration to dotted keys, with the values as YAML writes them."""
    if isinstance(config, Mapping) and config:
        parts = [flat_settings(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: "null" if config is None else str(config).lower() if isinstance(config, bool) else str(config)}
