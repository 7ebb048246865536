"""McNemar's test and its correction against SciPy, R and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from cifar_resnets.results.comparison import compare, differing_settings, flat_settings, holm, mcnemar
from cifar_resnets.results.csv_files import Predictions

NAMES = ("cat", "dog", "bird", "none")


def predictions(labels: np.ndarray, predicted: np.ndarray, names: tuple[str, ...] = NAMES) -> Predictions:
    return Predictions(names, labels, predicted, np.eye(len(names))[predicted])


@pytest.mark.parametrize(("b", "c"), [(0, 1), (3, 9), (9, 3), (0, 5), (86, 150), (480, 530), (4000, 4100)])
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(Fraction(2 * tail, 2 ** (b + c))), rel=1e-9)


def test_mcnemar_at_the_ends() -> None:
    assert (mcnemar(0, 0), mcnemar(7, 7)) == (1.0, 1.0)
    assert mcnemar(0, 5000) < 1e-300  # neither an overflow nor a warning


def test_holm_as_r_has_it() -> None:
    # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.04, 0.005, 0.03, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])  # in any order
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_differences_of_two_networks() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)  # no image of the last class
    first, second = (np.where(rng.random(400) < p, labels, rng.integers(0, 4, 400)) for p in (0.5, 0.8))
    comparison = compare(predictions(labels, first), predictions(labels, second))
    both = confusion_matrix(first == labels, second == labels, labels=[False, True])
    overall = comparison.overall
    assert (overall.newly_right, overall.newly_wrong) == (both[0, 1], both[1, 0])
    assert overall.change == pytest.approx((second == labels).mean() - (first == labels).mean())
    assert overall.p_value == pytest.approx(binomtest(int(both[0, 1]), int(both[0, 1] + both[1, 0])).pvalue)
    assert (first[comparison.newly_right] != labels[comparison.newly_right]).all()
    assert (second[comparison.newly_right] == labels[comparison.newly_right]).all()
    assert (len(comparison.newly_right), len(comparison.newly_wrong)) == (both[0, 1], both[1, 0])
    assert [each.name for each in comparison.classes] == list(NAMES)
    assert sum(each.newly_right for each in comparison.classes) == both[0, 1]
    raw = [mcnemar(each.newly_right, each.newly_wrong) for each in comparison.classes]
    assert [each.p_value for each in comparison.classes] == holm(raw) != raw
    empty = comparison.classes[3]
    assert (empty.images, empty.change, empty.p_value) == (0, 0.0, 1.0)


def test_the_order_of_the_names_does_not_matter() -> None:
    first = predictions(np.array([0, 1]), np.array([0, 0]), ("cat", "dog"))
    second = predictions(np.array([1, 0]), np.array([1, 0]), ("dog", "cat"))
    comparison = compare(first, second)
    assert comparison.newly_right.tolist() == [1]
    assert [each.correct for each in comparison.classes] == [(1, 1), (0, 1)]


def test_other_images_are_not_compared() -> None:
    first = predictions(np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(ValueError, match="2 and 3 images"):
        compare(first, predictions(np.array([0, 1, 1]), np.array([0, 0, 0])))
    with pytest.raises(ValueError, match="another order"):
        compare(first, predictions(np.array([1, 0]), np.array([0, 0])))


def test_settings_that_differ() -> None:
    first = {"model": {"lr": 0.1, "args": None, "schedule": {"class_path": "A"}}, "same": [1, 2]}
    second = {"model": {"lr": 0.2, "args": {"depths": [1]}, "schedule": {"class_path": "A"}}, "same": [1, 2]}
    assert differing_settings([first, second]) == {
        "model.lr": ["0.1", "0.2"],
        "model.args": ["null", None],
        "model.args.depths": [None, "[1]"],
    }
    assert flat_settings({"a": True, "b": {}}) == {"a": "true", "b": "{}"}
    assert differing_settings([first, first]) == {}
