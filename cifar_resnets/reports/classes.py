"""What an evaluation says class by class: accuracies, confusions, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cifar_resnets.evaluation.calibration import Reliability, confusion_counts, most_confused, reliability
from cifar_resnets.figures.charts import heat_grid, proportion_bar, reliability_chart
from cifar_resnets.reports.formatting import interval, percent
from cifar_resnets.results.csv_files import Predictions
from cifar_resnets.results.run_folder import Run

MAX_TABLE = 20  # classes, up to which a matrix is a table


@dataclass(frozen=True)
class ClassRow:
    """A class in the table of accuracies."""

    name: str
    accuracy: str
    interval: str
    correct: int
    images: int
    bar: Markup


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: its count, the strength of its colour from 0 to 1, and what it says in words."""

    count: int
    strength: float
    words: str
    right: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: as a table, or without numbers where there are many classes.

    Args:
        names: of the classes.
        rows: the cells of each true class; none of many classes.
        grid: a drawing of many classes.
    """

    names: Sequence[str]
    rows: list[list[Cell]]
    grid: Markup


@dataclass(frozen=True)
class Pair:
    """Images of one class that are taken for another, and their part of the true class."""

    true: str
    predicted: str
    count: int
    percent: str


def class_rows(run: Run) -> list[ClassRow]:
    """The accuracy of each class, and of all images at the end."""
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
            Markup() if row.accuracy is None or row.interval is None else proportion_bar(row.accuracy, *row.interval),
        )
        for row in rows
    ]


def matrix(run: Run) -> Matrix | None:
    """The confusion matrix; None without predictions."""
    if run.predictions is None:
        return None
    names, counts = run.predictions.class_names, _counts(run.predictions)
    if len(names) > MAX_TABLE:
        return Matrix(names, [], heat_grid(counts))
    return Matrix(names, [_cells(names, counts, true) for true in range(len(names))], Markup())


def _counts(predictions: Predictions) -> NDArray[np.int64]:
    return confusion_counts(predictions.labels, predictions.predicted, len(predictions.class_names))


def _cells(names: Sequence[str], counts: NDArray[np.int64], true: int) -> list[Cell]:
    images = int(counts[true].sum())
    cells = []
    for predicted, count in enumerate(counts[true].tolist()):
        part = count / max(images, 1)
        words = f"{names[true]} taken for {names[predicted]}: {count:,} of {images:,}, {percent(part, 1)}"
        # the root, so that few confusions are seen too
        cells.append(Cell(count, round(part**0.5, 3), words, predicted == true))
    return cells


def confused_pairs(run: Run) -> list[Pair]:
    """The ten most confused pairs of classes."""
    if run.predictions is None:
        return []
    names = run.predictions.class_names
    pairs = most_confused(_counts(run.predictions))
    return [Pair(names[pair.true], names[pair.predicted], pair.count, percent(pair.percent / 100, 1)) for pair in pairs]


def calibration(run: Run) -> Reliability | None:
    """How often the network is right by how sure it is; None without any probabilities."""
    if run.predictions is None:
        return None
    known = np.isfinite(run.predictions.probabilities).all(axis=1)
    labels, probabilities = run.predictions.labels[known], run.predictions.probabilities[known]
    return reliability(labels, probabilities) if len(labels) else None


def calibration_chart(run: Run) -> Markup | None:
    """The reliability diagram."""
    found = calibration(run)
    return reliability_chart(found.counts, found.confidence, found.accuracy) if found else None


def num_without_probabilities(run: Run) -> int:
    """Images whose probabilities are no numbers."""
    return 0 if run.predictions is None else int((~np.isfinite(run.predictions.probabilities)).any(axis=1).sum())
