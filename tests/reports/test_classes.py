"""Figures of classes against scikit-learn and torchmetrics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from report_runs import write_run
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnets.reports.classes import (
    calibration,
    calibration_figure,
    class_rows,
    confused_pairs,
    matrix,
    num_without_probabilities,
)
from cifar_resnets.reports.formatting import interval
from cifar_resnets.results.run_folder import Run, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "a", num_test=300), "a")


def test_the_matrix_is_that_of_scikit_learn(run: Run) -> None:
    assert run.predictions is not None
    expected = confusion_matrix(run.predictions.labels, run.predictions.predicted)
    found = matrix(run)
    assert found is not None
    assert not found["is_large"]
    texts = [
        each.text or "" for each in ElementTree.fromstring(found["svg"].replace("xlink:href", "href")).iter("text")
    ]
    counts, percents = [t for t in texts if t.isdecimal()], [t for t in texts if t.endswith("%")]
    assert list(map(int, counts)) == expected.ravel().tolist()
    shares = 100 * expected / expected.sum(axis=1, keepdims=True)
    assert [float(t.rstrip("%")) for t in percents] == pytest.approx(shares.ravel(), abs=0.501)
    assert [t for t in texts if t in ("cat", "dog", "bird")] == 2 * ["cat", "dog", "bird"]


def test_the_rows_are_those_of_test_json_and_end_with_all(run: Run) -> None:
    rows = class_rows(run)
    assert [row.name for row in rows] == ["cat", "dog", "bird", "all"]
    assert sum(row.correct for row in rows[:-1]) == rows[-1].correct
    assert rows[-1].images == 300
    assert rows[-1].interval is not None
    low, high = rows[-1].interval
    assert [100 * low, 100 * high] == pytest.approx(
        [*map(float, re.findall(r"[\d.]+", interval((low, high))))], abs=0.01
    )
    assert rows[-1].accuracy == rows[-1].correct / 300


def test_calibration_is_that_of_torchmetrics(run: Run) -> None:
    assert run.predictions is not None
    found = calibration(run)
    assert found is not None
    probabilities, labels = (torch.tensor(a) for a in (run.predictions.probabilities, run.predictions.labels))
    expected = multiclass_calibration_error(probabilities, labels, num_classes=3, n_bins=15)
    assert found.ece == pytest.approx(expected.item(), abs=1e-6)
    assert calibration_figure(run) is not None


def test_the_most_confused_pair_is_the_planted_one(run: Run) -> None:
    pairs = confused_pairs(run)
    assert pairs[0][:2] == ("cat", "dog")
    assert [count for _, _, count, _ in pairs] == sorted((count for _, _, count, _ in pairs), reverse=True)


def test_probabilities_that_are_no_numbers_are_counted_and_left_out(run: Run) -> None:
    assert run.predictions is not None
    probabilities = run.predictions.probabilities.copy()
    probabilities[:7] = np.nan
    broken = replace(run, predictions=replace(run.predictions, probabilities=probabilities))
    found = calibration(broken)
    assert found is not None
    assert (num_without_probabilities(broken), found.counts.sum()) == (7, 293)
    probabilities[:] = np.nan
    assert calibration(broken) is calibration_figure(broken) is None


def test_many_classes_have_no_numbers(tmp_path: Path) -> None:
    found = matrix(read_run(write_run(tmp_path / "a", [f"class {i}" for i in range(21)], 100), "a"))
    assert found is not None
    assert found["is_large"]
    assert "%</text>" not in found["svg"]


def test_without_predictions() -> None:
    empty = Run(Path("a"), "a")
    assert matrix(empty) is calibration(empty) is calibration_figure(empty) is None
    assert class_rows(empty) == confused_pairs(empty) == []
