"""Single images: the gallery of a run, and those that only one of two runs classifies correctly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.reports.data_urls import panels, thumbnail
from cifar_resnets.reports.formatting import percent
from cifar_resnets.results.comparison import Comparison
from cifar_resnets.results.csv_files import Predictions
from cifar_resnets.results.json_files import Mistakes
from cifar_resnets.results.run_folder import Run

MAX_THUMBNAILS = 24


@dataclass(frozen=True)
class Sample:
    """An image with what it is and what it was taken for.

    Args:
        index: place in the data.
        true, predicted: names of the classes.
        p_true, p_predicted: their probabilities.
        pictures: name and address of each picture of it.
    """

    index: int
    true: str
    predicted: str
    p_true: str
    p_predicted: str
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class Thumbnails:
    """Images that one run got wrong and another right.

    Args:
        total: how many there are.
        samples: those that are shown, the most confidently wrong ones first.
        reason: why none are shown.
    """

    total: int
    samples: list[Sample]
    reason: str = ""


def gallery(run: Run) -> list[Sample]:
    """Returns the most confidently wrong images of a run, with heatmaps where they were computed."""
    shown = run.gallery or run.mistakes
    if shown is None:
        return []
    names = _names(run)
    # without a gallery there are many mistakes
    return [_sample(shown, row, names, panels(shown, row)) for row in range(min(len(shown.images), MAX_THUMBNAILS))]


def newly_right(first: Run, comparison: Comparison) -> Thumbnails:
    """Returns images that only the second run classifies correctly, with the predictions of the first."""
    return _thumbnails(first, comparison.newly_right)


def newly_wrong(second: Run, comparison: Comparison) -> Thumbnails:
    """Returns images that only the first run classifies correctly, with the predictions of the second."""
    return _thumbnails(second, comparison.newly_wrong)


def _thumbnails(wrong: Run, indices: NDArray[np.int64]) -> Thumbnails:
    """Images of the run that was wrong."""
    mistakes = wrong.mistakes
    if mistakes is None:
        return Thumbnails(len(indices), [], f"there is no mistakes.npz of {wrong.label}")
    if wrong.predictions is None or not _agree(mistakes, wrong.predictions):
        return Thumbnails(len(indices), [], f"mistakes.npz of {wrong.label} is of another test than its predictions")
    rows = np.flatnonzero(np.isin(mistakes.index, indices))
    order = rows[np.argsort(-mistakes.p_predicted[rows], kind="stable")][:MAX_THUMBNAILS]
    names = _names(wrong)
    samples = [_sample(mistakes, row, names, [("image", thumbnail(mistakes, row))]) for row in order]
    return Thumbnails(len(indices), samples)


def _agree(mistakes: Mistakes, predictions: Predictions) -> bool:
    """Whether the mistakes are among the predictions."""
    index = mistakes.index
    if len(index) and not (0 <= index.min() and index.max() < len(predictions.labels)):
        return False
    same = predictions.labels[index] == mistakes.label, predictions.predicted[index] == mistakes.predicted
    return bool(np.all(same))


def _sample(mistakes: Mistakes, row: int, names: Sequence[str], pictures: list[tuple[str, str]]) -> Sample:
    return Sample(
        int(mistakes.index[row]),
        _name(names, int(mistakes.label[row])),
        _name(names, int(mistakes.predicted[row])),
        percent(float(mistakes.p_label[row]), 1),
        percent(float(mistakes.p_predicted[row]), 1),
        pictures,
    )


def _names(run: Run) -> list[str]:
    if run.predictions is not None:
        return list(run.predictions.class_names)
    return [row.name for row in run.evaluation.classes] if run.evaluation else []


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"class {number}"
