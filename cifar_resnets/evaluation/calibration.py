"""Calibration, confused pairs, and precision and recall of predicted probabilities, with NumPy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence, in equal-width bins (low, high] of the largest probability; NaN in an empty bin."""

    counts: Counts  # images in each bin (num_bins,)
    confidence: Floats  # mean of their largest probability (num_bins,)
    accuracy: Floats  # fraction of them that is classified correctly (num_bins,)

    @property
    def edges(self) -> Floats:
        """Returns the edges of the bins, from 0 to 1 (num_bins + 1,)."""
        return np.linspace(0, 1, len(self.counts) + 1)

    @property
    def ece(self) -> float:
        """Returns the expected calibration error, from 0 to 1; NaN without images.

        Source: Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", section 2, eq. 3.
        """
        filled = self.counts > 0
        if not filled.any():
            return float("nan")
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float(np.average(gaps, weights=self.counts[filled]))


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that are classified as another."""

    true: int
    predicted: int
    count: int
    percent: float  # of the images of the true class


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of one class against the rest, over all thresholds."""

    precision: Floats  # from 0 to 1 (n,)
    recall: Floats  # from 1 down to 0 (n,)

    @property
    def average_precision(self) -> float:
        """Returns the area under the curve, without interpolation, as scikit-learn's `average_precision_score`."""
        return float(-np.sum(np.diff(self.recall) * self.precision[:-1]))

    def at(self, recalls: Floats) -> Floats:
        """Returns the precision at the first threshold that reaches each recall."""
        rising = self.recall[::-1]
        return self.precision[::-1][np.minimum(np.searchsorted(rising, recalls), len(rising) - 1)]


def confusion_counts(labels: Labels, predicted: Labels, num_classes: int) -> Counts:
    """Returns the confusion matrix (num_classes, num_classes); rows are true, columns predicted classes."""
    cells = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def reliability(labels: Labels, probabilities: Probabilities, num_bins: int = 15) -> Reliability:
    """Bins images by their largest probability, which is finite; 15 bins as in the paper of `Reliability.ece`."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.digitize(confidence, np.linspace(0, 1, num_bins + 1)[1:-1], right=True)
    counts = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, right))
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        return Reliability(counts, *(total / counts for total in sums))


def row_percent(confusion: Counts) -> Floats:
    """Returns percent of the images of each true class (num_classes, num_classes); NaN for a class without images."""
    with np.errstate(invalid="ignore"):
        return np.asarray(100 * confusion / confusion.sum(axis=1, keepdims=True))


def most_confused(confusion: Counts, num_pairs: int = 10) -> list[ConfusedPair]:
    """Returns the largest counts off the diagonal, the largest first; ties in the order of the classes."""
    wrong = confusion - np.diag(confusion.diagonal())
    percent = row_percent(confusion)
    order = np.argsort(-wrong, axis=None, kind="stable")[:num_pairs]
    places = [(int(place) // len(wrong), int(place) % len(wrong)) for place in order]
    return [ConfusedPair(*at, int(wrong[at]), float(percent[at])) for at in places if wrong[at] > 0]


def precision_recall(labels: Labels, probabilities: Probabilities) -> list[PrecisionRecall | None]:
    """Returns the curve of each class against the rest; None for a class without images, which has no recall."""
    from sklearn.metrics import precision_recall_curve  # a second of import

    present = set(labels.tolist())
    curves = enumerate(probabilities.T)
    return [
        PrecisionRecall(*precision_recall_curve(labels == label, scores)[:2]) if label in present else None
        for label, scores in curves
    ]
