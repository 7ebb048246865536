"""Accuracy, confusion and calibration of an evaluation, class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cifar_resnets.evaluation.calibration import Reliability, confusion_counts, most_confused, reliability
from cifar_resnets.figures.calibration import plot_reliability
from cifar_resnets.figures.confusion import MOST_WITH_NUMBERS, plot_confusion
from cifar_resnets.figures.render import to_svg
from cifar_resnets.reports.formatting import interval, percent
from cifar_resnets.results.csv_files import Predictions
from cifar_resnets.results.run_folder import Run


@dataclass(frozen=True)
class ClassRow:
    """A class in the table of accuracies; its bar is from 0 to 1, followed by the ends of its interval."""

    name: str
    accuracy: str
    interval: str
    correct: int
    images: int
    bar: tuple[float, float, float] | None


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Args:
        svg: the figure.
        is_large: whether it has too many classes for a number in each cell.
    """

    svg: Markup
    is_large: bool


@dataclass(frozen=True)
class Pair:
    """Images of one class that are taken for another, and their percent of the true class."""

    true: str
    predicted: str
    count: int
    percent: str


def class_rows(run: Run) -> list[ClassRow]:
    """Returns the accuracy of each class, and of all images at the end."""
    if run.evaluation is None:
        return []
    rows = [*run.evaluation.classes, run.evaluation.total]
    return [
        ClassRow(
            row.name,
            percent(row.accuracy),
            interval(row.interval),
            row.correct,
            row.images,
            None if row.accuracy is None or row.interval is None else (row.accuracy, *row.interval),
        )
        for row in rows
    ]


def matrix(run: Run) -> Matrix | None:
    """Returns the confusion matrix; None without predictions."""
    if run.predictions is None:
        return None
    names = run.predictions.class_names
    figure = plot_confusion(_counts(run.predictions), names)
    svg = Markup(to_svg(figure, "matrix", f"Confusion matrix of {len(names)} classes"))
    return Matrix(svg, len(names) > MOST_WITH_NUMBERS)


def _counts(predictions: Predictions) -> NDArray[np.int64]:
    return confusion_counts(predictions.labels, predictions.predicted, len(predictions.class_names))


def confused_pairs(run: Run) -> list[Pair]:
    """Returns the ten most confused pairs of classes."""
    if run.predictions is None:
        return []
    names = run.predictions.class_names
    pairs = most_confused(_counts(run.predictions))
    return [Pair(names[pair.true], names[pair.predicted], pair.count, percent(pair.percent / 100, 1)) for pair in pairs]


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
