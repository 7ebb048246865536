"""Calibration, confused pairs and precision-recall: against torchmetrics, scikit-learn, and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnets.evaluation.calibration import (
    ConfusedPair,
    PrecisionRecall,
    confusion_counts,
    most_confused,
    precision_recall,
    reliability,
    row_percent,
)


def sample(num_classes: int, num: int = 2000, absent: int | None = None, scale: float = 1.5):
    """Labels and the probabilities of a network that is often, not always, right."""
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(num_classes, size=num)
    labels = labels[labels != absent]
    logits = rng.normal(size=(len(labels), num_classes)) * scale
    logits[np.arange(len(labels)), labels] += 2
    return labels, torch.tensor(logits).float().softmax(dim=1).numpy()


# Calibration.


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("num_bins", [5, 15])
def test_the_error_is_that_of_torchmetrics(num_classes, num_bins):
    labels, probabilities = sample(num_classes)
    assert probabilities.max() < 1
    both = torch.from_numpy(probabilities), torch.from_numpy(labels)
    expected = multiclass_calibration_error(*both, num_classes=num_classes, n_bins=num_bins).item()
    assert expected > 0.005
    assert reliability(labels, probabilities, num_bins).ece == pytest.approx(expected, abs=1e-6)


def test_bins_are_those_of_the_paper():
    labels, probabilities = sample(10)
    found = reliability(labels, probabilities)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    assert len(found.counts) == 15 and found.counts.sum() == len(labels)
    np.testing.assert_allclose(found.edges, np.arange(16) / 15)
    for index in range(15):  # section 2: I_m = ((m - 1) / M, m / M]
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        assert found.counts[index] == inside.sum()
        if inside.any():
            assert found.confidence[index] == pytest.approx(confidence[inside].mean(), rel=1e-6)
            assert found.accuracy[index] == pytest.approx(right[inside].mean())
        else:
            assert math.isnan(found.confidence[index]) and math.isnan(found.accuracy[index])
    assert (found.counts == 0).any() and (found.counts > 0).sum() > 10


def test_a_saturated_probability_is_in_the_last_bin():
    # torchmetrics has a bin of its own for exactly 1, the paper has not
    probabilities = np.array([[1, 0], [1, 0], [0.95, 0.05], [0.95, 0.05]], np.float32)
    labels = np.array([1, 0, 0, 0])
    found = reliability(labels, probabilities)
    assert found.counts.tolist() == [0] * 14 + [4]
    assert found.ece == pytest.approx(abs(3 / 4 - (1 + 1 + 0.95 + 0.95) / 4))


def test_a_probability_on_an_edge_is_in_the_lower_bin():
    assert reliability(np.array([0]), np.array([[0.5, 0.5]]), 4).counts.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(("labels", "ece"), [([0, 0], 0.0), ([1, 1], 1.0)])
def test_all_right_and_all_wrong(labels, ece):
    assert reliability(np.array(labels), np.array([[1.0, 0.0], [1.0, 0.0]])).ece == ece


def test_without_images_there_is_no_error():
    found = reliability(np.zeros(0, int), np.zeros((0, 3)))
    assert math.isnan(found.ece) and found.counts.sum() == 0


# Pairs.


@pytest.mark.parametrize("absent", [None, 4])
def test_counts_are_those_of_scikit_learn(absent):
    labels, probabilities = sample(6, absent=absent)
    predicted = probabilities.argmax(axis=1)
    expected = confusion_matrix(labels, predicted, labels=list(range(6)))
    np.testing.assert_array_equal(confusion_counts(labels, predicted, 6), expected)
    assert (expected[4].sum() == 0) == (absent == 4)


def test_percent_is_of_the_true_class():
    found = row_percent(np.array([[3, 1, 0], [0, 0, 0], [1, 0, 1]]))
    np.testing.assert_array_equal(found, [[75, 25, 0], [np.nan] * 3, [50, 0, 50]])


def test_the_most_confused_pairs_are_ordered_and_ties_keep_the_order_of_the_classes():
    confusion = np.array([[90, 7, 3], [2, 50, 3], [7, 0, 13]])
    assert most_confused(confusion) == [
        ConfusedPair(0, 1, 7, 7.0),
        ConfusedPair(2, 0, 7, 35.0),
        ConfusedPair(0, 2, 3, 3.0),
        ConfusedPair(1, 2, 3, pytest.approx(300 / 55)),
        ConfusedPair(1, 0, 2, pytest.approx(200 / 55)),
    ]


def test_ten_pairs_of_many():
    labels, probabilities = sample(10, scale=3)
    confusion = confusion_counts(labels, probabilities.argmax(axis=1), 10)
    pairs = most_confused(confusion)
    counts = sorted((int(confusion[i, j]) for i in range(10) for j in range(10) if i != j), reverse=True)
    assert [pair.count for pair in pairs] == counts[:10]
    assert all(confusion[pair.true, pair.predicted] == pair.count for pair in pairs)
    assert [pair.count for pair in most_confused(confusion, 3)] == counts[:3]


def test_without_mistakes_there_are_no_pairs():
    assert most_confused(np.diag([5, 0, 2])) == []


# Precision and recall.


@pytest.mark.parametrize("num_classes", [2, 10])
def test_average_precision_is_that_of_scikit_learn(num_classes):
    labels, probabilities = sample(num_classes, absent=1)
    curves = precision_recall(labels, probabilities)
    assert [curve is None for curve in curves] == [label == 1 for label in range(num_classes)]
    for label, curve in enumerate(curves):
        if curve is not None:
            expected = average_precision_score(labels == label, probabilities[:, label])
            assert curve.average_precision == pytest.approx(expected, abs=1e-12)


def test_precision_at_a_recall_is_that_of_the_first_threshold_that_reaches_it():
    labels, probabilities = sample(3, num=60, scale=3)
    [curve, *_] = precision_recall(labels, probabilities)
    scores, positive = probabilities[:, 0], labels == 0
    for recall in (0.1, 0.333, 0.5, 0.77, 1.0):
        for threshold in sorted(scores, reverse=True):
            taken = scores >= threshold
            if (taken & positive).sum() / positive.sum() >= recall:
                break
        expected = (taken & positive).sum() / taken.sum()
        assert curve.at(np.array([recall])) == pytest.approx([expected])


def test_the_mean_over_recalls_is_the_average_precision():
    labels, probabilities = sample(4)
    for curve in precision_recall(labels, probabilities):
        assert curve.at(np.linspace(0.0005, 0.9995, 1000)).mean() == pytest.approx(curve.average_precision, abs=2e-3)


def test_a_curve_worked_out_by_hand():
    # of three images two are positive, ranked first and last: precision 1 at recall 1/2, 2/3 at recall 1
    curve = PrecisionRecall(np.array([2 / 3, 1 / 2, 1, 1]), np.array([1, 1 / 2, 1 / 2, 0]))
    assert curve.average_precision == pytest.approx((2 / 3 + 1) / 2)
    np.testing.assert_allclose(curve.at(np.array([0.25, 0.5, 0.75, 1.0])), [1, 1, 2 / 3, 2 / 3])
