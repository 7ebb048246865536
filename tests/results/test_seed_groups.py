from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sweep_runs import FINDER, ONE_CYCLE, write_trained

from cifar_resnets.results.seed_groups import Group, group_runs, mean_interval, spread
from cifar_resnets.results.trained_runs import find_runs

LATER = "2026-11-21T10:00:01+0000"
SAME_TIME_ELSEWHERE = "2026-11-21T11:30:00+0200"  # half an hour before the others


def groups(root: Path) -> list[Group]:
    return group_runs(find_runs([root]))


# Statistics.


@pytest.mark.parametrize(
    ("num", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262), (31, 2.042), (121, 1.98)]
)
def test_interval_takes_the_published_quantiles(num: int, quantile: float) -> None:
    """Abramowitz and Stegun (1964), table 26.10, 95 % within."""
    values = [0.25, 0.75] * (num // 2) + [0.5] * (num % 2)
    half = quantile * statistics.stdev(values) / num**0.5
    assert mean_interval(values) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3 * half)


@pytest.mark.parametrize("num", [2, 3, 5, 20])
def test_spread_is_that_of_numpy_and_scipy(num: int) -> None:
    values = np.random.default_rng(num).normal(0.9, 0.003, num)
    found = spread(values.tolist())
    assert found is not None
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.std == pytest.approx(values.std(ddof=1), rel=1e-9)
    assert found.std == pytest.approx(statistics.stdev(values), rel=1e-9)
    expected = stats.t.interval(0.95, num - 1, values.mean(), stats.sem(values))
    assert found.interval == pytest.approx((expected[0], min(expected[1], 1.0)), rel=1e-9)
    assert (found.lowest, found.highest) == (values.min(), values.max())


def test_interval_of_accuracies_stays_among_accuracies() -> None:
    found = spread([0.01, 0.99])
    assert found is not None
    assert found.interval == (0.0, 1.0)


def test_equal_accuracies_have_no_spread() -> None:
    found = spread([0.1, 0.1, 0.1])
    assert found is not None
    assert (found.mean, found.std, found.interval) == (pytest.approx(0.1), 0.0, pytest.approx((0.1, 0.1)))


def test_one_accuracy_has_no_deviation_and_none_has_nothing() -> None:
    found = spread([0.5])
    assert found is not None
    assert (found.mean, found.std, found.interval, found.lowest, found.highest) == (0.5, None, None, 0.5, 0.5)
    assert spread([]) is None


# Groups.


def test_seeds_are_a_group_wherever_they_ran(tmp_path: Path) -> None:
    accuracies = [0.91, 0.93, 0.95]
    write_trained(tmp_path / "a/version_0", 0, accuracies[0], 0.7)
    write_trained(tmp_path / "a/version_1", 1, accuracies[1], 0.8, **{"trainer.devices": 2, "trainer.strategy": "ddp"})
    write_trained(tmp_path / "b/version_0", 2, accuracies[2], 0.9, **{"trainer.default_root_dir": "b"})
    [group] = groups(tmp_path)
    assert (group.name, group.network, group.settings) == ("tiny", "cifar_resnet20", {})
    assert (group.num_missing, group.notes) == (0, [])
    assert [run.accuracy for run in group.runs] == accuracies
    assert group.test is not None
    assert group.test.mean == pytest.approx(np.mean(accuracies))
    assert group.val_mean == pytest.approx(0.8)


def test_names_are_groups_of_their_own(tmp_path: Path) -> None:
    for seed, name in enumerate(("tiny", "other", None)):
        write_trained(tmp_path / f"version_{seed}", seed, name=name)
    assert [(group.name, len(group.runs)) for group in groups(tmp_path)] == [
        ("tiny", 1),
        ("other", 1),
        ("cifar_resnet20", 1),
    ]


def test_settings_tell_groups_of_a_name_apart(tmp_path: Path) -> None:
    several: list[dict[str, Any]] = [
        {},
        {"model.lr": 0.1},
        {"model.schedule": ONE_CYCLE},
        {"model.schedule": {**ONE_CYCLE, "init_args": {**ONE_CYCLE["init_args"], "peak_fraction": 0.5}}},
        {"model.network": "cifar_resnet56", "model.network_args": {"shortcut": "B"}},
        {"trainer.callbacks": [FINDER], "model.lr": 0.3},
    ]
    for number, (changes, seed) in enumerate(itertools.product(several, (0, 1))):
        write_trained(tmp_path / f"version_{number}", seed, **changes)
    write_trained(tmp_path / "version_99", name="other", **{"trainer.max_epochs": 3})
    found = groups(tmp_path)
    assert [len(group.runs) for group in found] == [2] * 6 + [1]
    base = {
        "trainer.callbacks": "none",
        "model.lr": "0.05",
        "model.network_args": "null",
        "model.schedule": "Cosine",
    }
    assert found[0].settings == base
    assert found[1].settings == {**base, "model.lr": "0.1"}
    assert found[2].settings == {**base, "model.schedule": "OneCycle", "model.schedule.peak_fraction": "0.3"}
    assert found[3].settings == {**base, "model.schedule": "OneCycle", "model.schedule.peak_fraction": "0.5"}
    without = {key: value for key, value in base.items() if key != "model.network_args"}
    assert found[4].settings == {**without, "model.network_args.shortcut": "B"}
    assert found[4].network == "cifar_resnet56"
    assert found[5].settings == {**base, "trainer.callbacks": "LRFinder", "model.lr": "found"}
    assert found[6].settings == {}


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_the_newest_run_of_a_seed_counts_and_a_line_says_so(tmp_path: Path, first: int, second: int) -> None:
    times = [SAME_TIME_ELSEWHERE, "2026-11-21T10:00:00+0000"]
    write_trained(tmp_path / "version_0", 4, 0.25, started=times[first])
    write_trained(tmp_path / "version_1", 4, 0.75, started=times[second])
    write_trained(tmp_path / "version_2", 5, 0.5)
    [group] = groups(tmp_path)
    newest = 1 if second else 0
    assert [run.accuracy for run in group.runs] == [0.75 if newest else 0.25, 0.5]
    [note] = group.notes
    assert note.startswith(
        f"{tmp_path}/version_{1 - newest} is left out: {tmp_path}/version_{newest} has the same seed, 4"
    )


def test_of_equal_times_the_larger_number_is_newer(tmp_path: Path) -> None:
    for number in (9, 10):
        write_trained(tmp_path / f"version_{number}", 4, number / 100)
    [group] = groups(tmp_path)
    assert [run.accuracy for run in group.runs] == [0.1]


def test_a_newer_run_without_a_result_does_not_hide_an_older_one(tmp_path: Path) -> None:
    write_trained(tmp_path / "version_0", 4, 0.25)
    write_trained(tmp_path / "version_1", 4, None, started=LATER)
    write_trained(tmp_path / "version_2", 5, None)
    write_trained(tmp_path / "version_3", 5, None)
    [group] = groups(tmp_path)
    assert ([run.accuracy for run in group.runs], group.num_missing, group.notes) == ([0.25], 1, [])


def test_a_group_without_any_result_is_there(tmp_path: Path) -> None:
    write_trained(tmp_path / "version_0", 4, None)
    [group] = groups(tmp_path)
    assert (group.runs, group.num_missing, group.test, group.val_mean) == ([], 1, None, None)


def test_validation_is_not_averaged_over_fewer_runs_than_the_test(tmp_path: Path) -> None:
    write_trained(tmp_path / "version_0", 0)
    write_trained(tmp_path / "version_1", 1, val_accuracy=None)
    [group] = groups(tmp_path)
    assert len(group.runs) == 2
    assert group.val_mean is None
    assert group.notes == [f"{tmp_path}/version_1: its validation accuracy is not known"]


def test_several_versions_of_the_code_are_noted(tmp_path: Path) -> None:
    for seed, commit in enumerate(("a" * 40, "b" * 40, "a" * 40, "")):
        write_trained(tmp_path / f"version_{seed}", seed, commit=commit)
    [group] = groups(tmp_path)
    assert group.notes == ["tiny: its runs are of several versions of the code, aaaaaaaaaa, bbbbbbbbbb, unknown"]
