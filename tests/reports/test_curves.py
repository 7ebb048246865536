from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_runs import write_run

from cifar_resnets.reports.curves import search_panel, training_panels
from cifar_resnets.results.run_folder import Run, read_run

TICK = re.compile(r'x="([\d.]+)" y="([\d.]+)"[^>]*>([\d.]+)</text>')


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
    assert schedule.heading == "Learning rate, and momentum below"
    assert schedule.legend == []
    drawn = accuracy.legend[0].curve
    assert drawn.y == pytest.approx(100 * runs[0].history["val/acc"].y)


def test_panels_of_several_runs_have_a_colour_for_each(runs: list[Run]) -> None:
    loss, accuracy, schedule = training_panels(runs)
    for panel in (loss, accuracy, schedule):
        assert [(series.label, series.color) for series in panel.legend] == [("a", 0), ("b", 1)]
    assert loss.svg.count("stroke-dasharray") == 2
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
    ticks = {text: (float(x), float(y)) for x, y, text in TICK.findall(panel.svg)}
    upright = re.findall(r'd="M ([\d.]+) [\d.]+ L \1 [\d.]+ "[^>]*stroke: var\(--ink\); stroke-width: 1.6', panel.svg)
    assert float(upright[0]) == pytest.approx(ticks["0.1"][0], abs=0.2)
    assert "trained with 0.1" in panel.svg
    assert "smoothed loss" in panel.svg


def test_a_search_without_a_known_rate_has_no_mark(runs: list[Run]) -> None:
    for rate in (None, "found", -1.0, float("nan"), True):
        runs[0].config["model"]["lr"] = rate
        panel = search_panel(runs[0])
        assert panel is not None
        assert "trained with" not in panel.svg


def test_a_divergence_does_not_flatten_the_curve(runs: list[Run]) -> None:
    raw, smoothed = runs[0].search[0]
    assert smoothed.y.max() > 10
    panel = search_panel(runs[0])
    assert panel is not None
    ticks = [(float(x), float(text)) for x, _, text in TICK.findall(panel.svg)]
    beside = [value for x, value in ticks if x == min(ticks)[0]]
    assert len(beside) > 2
    assert min(beside) < 2 < max(beside) < 4
