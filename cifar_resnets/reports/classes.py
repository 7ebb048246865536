"""Accuracy, confusion and calibration of an evaluation, class by class."""

from typing import Any

import numpy as np
from markupsafe import Markup

from cifar_resnets.evaluation.calibration import Counts, Reliability, confusion_counts, most_confused, reliability
from cifar_resnets.figures.calibration import plot_reliability
from cifar_resnets.figures.confusion import MOST_WITH_NUMBERS, plot_confusion
from cifar_resnets.figures.render import to_svg
from cifar_resnets.results.csv_files import Predictions
from cifar_resnets.results.json_files import Proportion
from cifar_resnets.results.run_folder import Run


def class_rows(run: Run) -> list[Proportion]:
    """Returns the accuracy of each class, and of all images at the end."""
    return [*run.evaluation.classes, run.evaluation.total] if run.evaluation else []


def matrix(run: Run) -> dict[str, Any] | None:
    """Returns the figure of the confusion matrix, and whether it is too large for numbers; None without predictions."""
    if run.predictions is None:
        return None
    names = run.predictions.class_names
    svg = to_svg(plot_confusion(_counts(run.predictions), names), "matrix", f"Confusion matrix of {len(names)} classes")
    return {"svg": Markup(svg), "is_large": len(names) > MOST_WITH_NUMBERS}


def _counts(predictions: Predictions) -> Counts:
    return confusion_counts(predictions.labels, predictions.predicted, len(predictions.class_names))


def confused_pairs(run: Run) -> list[tuple[str, str, int, float]]:
    """Returns true and predicted class, count, and part of the true class of the ten most confused pairs."""
    if run.predictions is None:
        return []
    names, pairs = run.predictions.class_names, most_confused(_counts(run.predictions))
    return [(names[pair.true], names[pair.predicted], pair.count, pair.percent / 100) for pair in pairs]


def calibration(run: Run) -> Reliability | None:
    """Returns the accuracies by confidence; None without any probabilities."""
    if run.predictions is None:
        return None
    known = np.isfinite(run.predictions.probabilities).all(axis=1)
    labels, probabilities = run.predictions.labels[known], run.predictions.probabilities[known]
    return reliability(labels, probabilities) if len(labels) else None


def calibration_figure(run: Run) -> Markup | None:
    """Returns the reliability diagram; None without any probabilities."""
    found = calibration(run)
    if found is None:
        return None
    label = f"Accuracy over confidence of {found.counts.sum():,} images"
    return Markup(to_svg(plot_reliability(found), f"calibration of {run.label}", label))


def num_without_probabilities(run: Run) -> int:
    """Returns the number of images whose probabilities are not finite."""
    return 0 if run.predictions is None else int((~np.isfinite(run.predictions.probabilities)).any(axis=1).sum())
