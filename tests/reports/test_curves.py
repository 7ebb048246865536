from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_run

from cifar_resnets.reports.curves import search_panel, training_panels
from cifar_resnets.results.run_folder import Run, read_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    folders = [write_run(tmp_path / name, num_epochs=n, seed=n) for name, n in (("a", 20), ("b", 30))]
    return [read_run(folder, folder.name) for folder in folders]


def test_panels_of_one_run(runs: list[Run]) -> None:
    loss, accuracy, schedule = training_panels(runs[:1])
    assert loss.heading == "Loss (nats, logarithmic)"
    assert accuracy.heading == "Accuracy (%)"
    assert [series.label for series in loss.legend] == ["validation", "training"]
    assert len({series.color for series in loss.legend}) == 2
    assert len(schedule.charts) == 2  # rate, and momentum below
    assert schedule.legend == []
    drawn = accuracy.charts[0].legend[0].curve
    assert drawn.y == pytest.approx(100 * runs[0].history["val/acc"].y)


def test_panels_of_several_runs_have_a_colour_for_each(runs: list[Run]) -> None:
    loss, accuracy, schedule = training_panels(runs)
    for panel in (loss, accuracy, schedule):
        assert [(series.label, series.color) for series in panel.legend] == [("a", 0), ("b", 1)]
    assert [series.style for series in loss.charts[0].legend] == ["line", "dashed"] * 2
    assert "Dashed: training" in loss.note
    one = training_panels([Run(Path("c"), "c"), runs[0]])
    assert [(series.label, series.color) for series in one[2].legend] == [("a", 1)]


def test_a_run_that_was_only_tested_has_none() -> None:
    empty = Run(Path("a"), "a")
    assert training_panels([empty]) == []
    assert search_panel(empty) is None


def test_the_search_marks_the_rate_of_the_run(runs: list[Run]) -> None:
    panel = search_panel(runs[0])
    assert panel is not None
    assert panel.legend == []
    svg = panel.charts[0].svg
    mark = re.search(r'class="mark" d="M([\d.]+)', svg)
    assert mark is not None
    ticks = dict((text, float(at)) for at, text in re.findall(r'x="([\d.]+)" y="[\d.]+" class="x">([\d.]+)<', svg))
    assert float(mark[1]) == pytest.approx(ticks["0.1"], abs=0.2)
    assert "trained with 0.1" in svg


def test_a_search_without_a_known_rate_has_no_mark(runs: list[Run]) -> None:
    for rate in (None, "found", -1.0, float("nan"), True):
        runs[0].config["model"]["lr"] = rate
        panel = search_panel(runs[0])
        assert panel is not None
        assert "trained with" not in panel.charts[0].svg


def test_a_divergence_does_not_flatten_the_curve(runs: list[Run]) -> None:
    raw, smoothed = runs[0].search[0]
    assert smoothed.y.max() > 10
    panel = search_panel(runs[0])
    assert panel is not None
    values = [float(text) for text in re.findall(r'class="y">([\d.]+)<', panel.charts[0].svg)]
    assert max(values) < 4
    assert np.min(values) < 2
