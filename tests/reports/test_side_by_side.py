from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import write_run

from cifar_resnets.reports.formatting import points
from cifar_resnets.reports.image_samples import MAX_THUMBNAILS
from cifar_resnets.reports.side_by_side import figure_table, recipe_table, setting_table, versus
from cifar_resnets.results.comparison import mcnemar
from cifar_resnets.results.run_folder import Run, read_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(root / name, seed=seed, skill=1 + seed), name) for name, seed in (("a", 0), ("b", 2))]


def test_figures_and_settings(runs: list[Run]) -> None:
    table = figure_table([*runs, Run(Path("c"), "c")])
    assert {"best validation accuracy", "test loss", "calibration error", "training time"} <= table.keys()
    assert all(len(cells) == 3 and cells[2] == "–" for cells in table.values())
    assert setting_table(runs) == {"seed_everything": ["0", "2"]}
    assert setting_table([runs[0], Run(Path("c"), "c")])["model.lr"] == ["0.1", "–"]
    assert recipe_table(runs)["network"] == ["cifar_resnet20"] * 2
    assert "versions" not in recipe_table(runs)


def test_a_run_beside_the_first_one(runs: list[Run]) -> None:
    first, second = runs
    assert first.predictions is not None
    assert second.predictions is not None
    found = versus(first, second)
    assert found["reason"] == ""
    overall = found["overall"]
    right = [(run.predictions.labels == run.predictions.predicted) for run in runs if run.predictions]
    only = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    assert (overall.newly_right, overall.newly_wrong) == only
    assert overall.p_value == mcnemar(*only)
    assert points(overall.change) == f"{100 * (right[1].mean() - right[0].mean()):+.2f}".replace("-", "−")
    assert [row.name for row in found["classes"]] == ["cat", "dog", "bird"]
    assert max(abs(row.change) for row in found["classes"]) == found["largest"]
    for row in found["classes"]:
        assert (row.change > 0) == points(row.change).startswith("+")
    for shown, number in ((found["newly_right"], only[0]), (found["newly_wrong"], only[1])):
        assert shown["total"] == number
        assert (
            len(shown["samples"]) == min(number, MAX_THUMBNAILS) > 0
        )  # they are among the mistakes of the run that was wrong


def test_why_two_runs_are_not_compared(runs: list[Run], tmp_path: Path) -> None:
    first, second = runs
    assert "of b" in versus(first, replace(second, predictions=None))["reason"]
    empty = [replace(run, predictions=None) for run in runs]
    assert "of a or of b" in versus(*empty)["reason"]
    fewer = read_run(write_run(tmp_path / "fewer", num_test=50), "fewer")
    assert "60 and 50 images" in versus(first, fewer)["reason"]
    validated = replace(second, stage="val")
    assert "validated only" in versus(first, validated)["reason"]
    without = replace(validated, predictions=None)
    assert "val_predictions.csv of b" in versus(replace(first, stage="val"), without)["reason"]
