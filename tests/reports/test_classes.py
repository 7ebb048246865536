"""Figures of classes against scikit-learn and torchmetrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import write_run
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnets.reports.classes import (
    calibration,
    calibration_chart,
    class_rows,
    confused_pairs,
    matrix,
    num_without_probabilities,
)
from cifar_resnets.results.run_folder import Run, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "a", num_test=300), "a")


def test_the_matrix_is_that_of_scikit_learn(run: Run) -> None:
    assert run.predictions is not None
    expected = confusion_matrix(run.predictions.labels, run.predictions.predicted)
    found = matrix(run)
    assert found is not None
    assert [[cell.count for cell in row] for row in found.rows] == expected.tolist()
    cell = found.rows[0][1]
    assert cell.strength == pytest.approx((expected[0, 1] / expected[0].sum()) ** 0.5, abs=1e-3)
    assert cell.words.startswith(f"cat taken for dog: {expected[0, 1]} of {expected[0].sum()}, ")
    assert [row[i].right for i, row in enumerate(found.rows)] == [True] * 3
    assert not cell.right


def test_the_rows_are_those_of_test_json_and_end_with_all(run: Run) -> None:
    rows = class_rows(run)
    assert [row.name for row in rows] == ["cat", "dog", "bird", "all"]
    assert sum(row.correct for row in rows[:-1]) == rows[-1].correct
    assert rows[-1].images == 300


def test_calibration_is_that_of_torchmetrics(run: Run) -> None:
    assert run.predictions is not None
    found = calibration(run)
    assert found is not None
    probabilities, labels = (torch.tensor(a) for a in (run.predictions.probabilities, run.predictions.labels))
    expected = multiclass_calibration_error(probabilities, labels, num_classes=3, n_bins=15)
    assert found.ece == pytest.approx(expected.item(), abs=1e-6)
    assert calibration_chart(run) is not None


def test_the_most_confused_pair_is_the_planted_one(run: Run) -> None:
    pairs = confused_pairs(run)
    assert (pairs[0].true, pairs[0].predicted) == ("cat", "dog")
    assert [pair.count for pair in pairs] == sorted((pair.count for pair in pairs), reverse=True)


def test_probabilities_that_are_no_numbers_are_counted_and_left_out(run: Run) -> None:
    assert run.predictions is not None
    probabilities = run.predictions.probabilities.copy()
    probabilities[:7] = np.nan
    broken = replace(run, predictions=replace(run.predictions, probabilities=probabilities))
    found = calibration(broken)
    assert found is not None
    assert (num_without_probabilities(broken), found.counts.sum()) == (7, 293)
    probabilities[:] = np.nan
    assert calibration(broken) is calibration_chart(broken) is None


def test_many_classes_are_a_grid(tmp_path: Path) -> None:
    found = matrix(read_run(write_run(tmp_path / "a", [f"class {i}" for i in range(21)], 100), "a"))
    assert found is not None
    assert found.rows == []
    assert found.grid.startswith("<svg")


def test_without_predictions() -> None:
    empty = Run(Path("a"), "a")
    assert matrix(empty) is calibration(empty) is calibration_chart(empty) is None
    assert class_rows(empty) == confused_pairs(empty) == []
