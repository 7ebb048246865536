from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_run

from cifar_resnets.reports.curves import search_panel, training_panels
from cifar_resnets.results.csv_files import Curve
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
    assert len(schedule.legend) == 0
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
    nothing = Curve(np.array([1.0, 2.0]), np.array([np.nan, np.inf]))
    lost = Run(Path("a"), "a", history={"val/loss": nothing, "lr": nothing}, search=[(nothing, nothing)])
    assert training_panels([lost]) == []
    assert search_panel(lost) is None


@pytest.mark.long
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [(1e308, 1.0), (-1e99, 1e99), (5e-324, 2.0), (0.0, 1e-320), (np.nan, 0.0)])
@pytest.mark.parametrize("places", [(1.0, 2.0), (1.0, 1e308), (1e-320, 1e-300), (1e-99, 1e99)])
def test_numbers_of_a_damaged_run_are_drawn_or_left_out(
    values: tuple[float, float], places: tuple[float, float]
) -> None:
    curve = Curve(np.array(places), np.array(values))
    run = Run(Path("a"), "a", history={"val/loss": curve, "lr": curve}, search=[(curve, curve)])
    assert len(training_panels([run])) in (0, 2)
    for rate in (0.1, 1e308, 5e-324):  # which the search's panel alone marks
        run.config["model"] = {"lr": rate}
        search_panel(run)


def test_the_search_marks_the_rate_of_the_run(runs: list[Run]) -> None:
    panel = search_panel(runs[0])
    assert panel is not None
    assert len(panel.legend) == 0
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
