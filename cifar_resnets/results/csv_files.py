"""Reads the CSV files of a run, also if the last row was cut off in the middle of a write."""

import contextlib
import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_CELLS = 2**24  # of a table, each a hundred bytes in memory: predictions of a million images for ten classes
MOST_CLASSES = 5_000  # a confusion matrix takes their square
MOST_SEARCHES = 1_000  # each is a curve


@dataclass(frozen=True)
class Curve:
    """A metric over a run: x (n,), for example epochs, and y (n,), some of which may not be finite."""

    x: Floats
    y: Floats


@dataclass(frozen=True)
class Predictions:
    """The predictions for each image of a set, in the order of the data.

    Args:
        class_names: of the columns of the probabilities.
        labels: true classes, as positions in the names (n,).
        predicted: predicted classes, likewise (n,).
        probabilities: (n, num_classes), some of which may be NaN.
        paths: names of the images (n,); None if they have none, or the file is of version 0.1.0.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: Floats
    paths: tuple[str, ...] | None = None

    @property
    def label_names(self) -> list[str]:
        """Returns the name of the true class of each image, by which two evaluations can be compared."""
        return [self.class_names[label] for label in self.labels]


def read_rows(path: Path, notes: list[str]) -> list[dict[str, str]]:
    """Reads the rows of a CSV file; rows that are cut off are left out, with a note."""
    text = path.read_bytes().decode()  # `read_text` would replace the carriage returns in names of classes
    if text.count(",") + text.count("\n") > MOST_CELLS:
        raise ValueError(f"it holds more than {MOST_CELLS:,} cells")
    header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    if not header:
        raise ValueError("it is empty")
    if not text.endswith("\n"):  # the last number may lack digits, which nothing shows
        rows = rows[:-1]
        notes.append(f"{path.name}: the last row is cut off and was left out")
    whole = [row for row in rows if len(row) == len(header)]
    if lost := len(rows) - len(whole):
        notes.append(f"{path.name}: {lost} damaged {'row was' if lost == 1 else 'rows were'} left out")
    return [dict(zip(header, row, strict=True)) for row in whole]


def read_history(path: Path, notes: list[str]) -> dict[str, Curve]:
    """Reads the columns of `metrics.csv` as curves over the epochs; columns without a number are left out."""
    texts, rows = read_rows(path, notes), []
    for row in texts:
        with contextlib.suppress(ValueError):
            rows.append(_numbers(row))
    if lost := len(texts) - len(rows):
        notes.append(f"{path.name}: {lost} rows hold something else than numbers and were left out")
    per_epoch = _steps_per_epoch(rows)
    names = dict.fromkeys(name for row in rows for name in row if name not in ("epoch", "step"))
    return {name: _curve(rows, name, per_epoch) for name in names}


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in row.items() if cell != ""}


def _steps_per_epoch(rows: list[dict[str, float]]) -> float | None:
    """Returns the optimizer steps of an epoch, of which the last may be shorter; None if the file does not show it."""
    whole = [row for row in rows if {"epoch", "step", "train/loss"} <= row.keys()]
    ends = {row["epoch"]: row["step"] for row in whole if min(row["epoch"], row["step"]) >= 0}
    # of two epochs the longer one
    return median_high((step + 1) / (epoch + 1) for epoch, step in ends.items()) if ends else None


def _curve(rows: list[dict[str, float]], name: str, per_epoch: float | None) -> Curve:
    points = {_epochs(row, per_epoch): row[name] for row in rows if name in row}  # of two values the newer one
    x = sorted(filter(math.isfinite, points))
    return Curve(np.array(x), np.array([points[each] for each in x]))


def _epochs(row: Mapping[str, float], per_epoch: float | None) -> float:
    """Returns the epochs, a fraction included, at which a row was written: validation may run within an epoch."""
    if per_epoch is None or "step" not in row:
        return row.get("epoch", 0.0) + 1
    return round((row["step"] + 1) / per_epoch, 6)


def read_predictions(path: Path, notes: list[str]) -> Predictions:
    """Reads the columns `index,path,label,predicted,p(<class>)...` of `test_predictions.csv`; `path` may be missing."""
    rows = read_rows(path, notes)
    if not rows:
        raise ValueError("it holds no predictions")
    columns = [name for name in rows[0] if name.startswith("p(") and name.endswith(")")]
    has_paths = "path" in rows[0]
    if list(rows[0]) != ["index", *["path"] * has_paths, "label", "predicted", *columns]:
        raise ValueError("it has other columns than index, path, label, predicted and probabilities")
    if [row["index"] for row in rows] != [str(index) for index in range(len(rows))]:
        raise ValueError("its images are not in the order of the data, or some are missing")
    if len(columns) > MOST_CLASSES:
        raise ValueError(f"it has more than {MOST_CLASSES:,} classes")
    names = tuple(name[2:-1] for name in columns)
    number = {name: position for position, name in enumerate(names)}
    if unknown := {row[key] for row in rows for key in ("label", "predicted")} - number.keys():
        raise ValueError(f"there is no column of probabilities for {min(unknown)}")
    labels, predicted = (np.array([number[row[key]] for row in rows]) for key in ("label", "predicted"))
    probabilities = np.array([[float(row[name]) for name in columns] for row in rows])
    paths = tuple(row["path"] for row in rows) if has_paths else None
    return Predictions(names, labels, predicted, probabilities, paths)


def read_search(path: Path, notes: list[str]) -> list[tuple[Curve, Curve]]:
    """Reads for each run in `lr_finder.csv` the losses over the learning rate, as measured and smoothed."""
    runs: dict[float, list[dict[str, float]]] = {}
    for row in map(_numbers, read_rows(path, notes)):
        runs.setdefault(row["run"], []).append(row)
    if len(runs) > MOST_SEARCHES:
        raise ValueError(f"it holds more than {MOST_SEARCHES:,} runs")
    names = ("lr", "loss", "smoothed_loss")
    columns = [[np.array([row[name] for row in runs[run]]) for name in names] for run in sorted(runs)]
    if any(not ((rates > 0) & np.isfinite(rates)).all() for rates, _, _ in columns):
        raise ValueError("it holds rates that are not above 0, or not finite")
    return [(Curve(rates, losses), Curve(rates, smoothed)) for rates, losses, smoothed in columns]


def finite(values: Floats) -> Floats:
    """Returns the values that are finite."""
    return values[np.isfinite(values)]
