"""Suggestions from several range tests."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import gmean

from cifar_resnets.training.lr_curve import MIN_STEPS, SUGGESTIONS, find_problem, smooth, start_of_descent
from cifar_resnets.training.lr_search import COLUMNS, Method, Search, three_digits

RATES = np.geomspace(1e-4, 10, 100).tolist()


def bowl(factor: float = 1.0, seed: int = 0) -> list[float]:
    """A noisy curve that falls around 0.02 and rises around 0.5, both times a factor."""
    decades = np.log10(np.array(RATES) / factor)
    noise = np.random.default_rng(seed).normal(0, 0.05, len(RATES))
    return (2.3 - expit((decades + 1.7) / 0.15) + np.exp((decades + 0.3) / 0.2) + noise).tolist()


THREE = [bowl(factor, seed) for seed, factor in enumerate((0.8, 1.0, 1.3))]


def test_the_methods_are_those_that_suggest():
    assert get_args(Method) == tuple(SUGGESTIONS)


@pytest.mark.parametrize("method", SUGGESTIONS)
def test_one_run_suggests_three_digits_of_its_suggestion(method):
    losses = bowl()
    value = SUGGESTIONS[method](RATES, losses)
    suggestion = Search(RATES, [losses]).suggestion(method)
    assert suggestion.low == suggestion.high == value
    assert suggestion.value == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("method", SUGGESTIONS)
def test_several_runs_suggest_their_geometric_mean(method):
    values = [SUGGESTIONS[method](RATES, losses) for losses in THREE]
    suggestion = Search(RATES, THREE).suggestion(method)
    assert suggestion.value == float(f"{gmean(values):.2e}")
    assert (suggestion.low, suggestion.high) == (min(values), max(values))
    assert suggestion.low < suggestion.high


def test_the_start_is_the_geometric_mean_of_the_starts():
    starts = [start_of_descent(RATES, losses) for losses in THREE]
    assert len(set(starts)) > 1
    assert Search(RATES, THREE).start == float(f"{gmean(starts):.2e}")


@pytest.mark.parametrize("method", SUGGESTIONS)
def test_a_run_that_diverged_keeps_its_own_rates(method):
    short = bowl(seed=1)[:80]
    values = [SUGGESTIONS[method](RATES[:80], short), SUGGESTIONS[method](RATES, bowl())]
    search = Search(RATES, [short, bowl()])
    assert search.suggestion(method).value == float(f"{gmean(values):.2e}")
    assert search.problem(method) is None
    assert search.is_long_enough


@pytest.mark.parametrize("method", SUGGESTIONS)
def test_runs_that_agree_have_no_problem(method):
    assert Search(RATES, THREE).problem(method) is None


@pytest.mark.parametrize("method", SUGGESTIONS)
def test_runs_that_disagree_by_more_than_a_factor_of_three_are_a_problem(method):
    close, far = (Search(RATES, [bowl(), bowl(factor)]) for factor in (2, 5))
    assert close.problem(method) is None
    values = [SUGGESTIONS[method](RATES, losses) for losses in far.runs]
    expected = f"the runs do not agree ({min(values):.2g} to {max(values):.2g} over 2 runs), try more num_steps"
    assert far.problem(method) == expected


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("bad", [[2.3] * 100, bowl()[: MIN_STEPS - 1], RATES], ids=["flat", "short", "rising"])
def test_the_problem_of_any_run_is_a_problem_of_the_search(position, bad):
    runs = [bowl(seed=1), bowl(seed=2)]
    runs.insert(position, bad)
    problem = find_problem(RATES[: len(bad)], bad)
    assert problem is not None and Search(RATES, runs).problem("valley") == problem


@pytest.mark.parametrize(("steps", "enough"), [(1, False), (MIN_STEPS - 1, False), (MIN_STEPS, True), (100, True)])
def test_the_shortest_run_decides_whether_there_is_something_to_draw(steps, enough):
    assert Search(RATES, [bowl(), bowl()[:steps]]).is_long_enough is enough


def test_the_rows_hold_all_steps_of_all_runs():
    runs = [bowl(), bowl(seed=1)[:40]]
    rows = Search(RATES, runs).rows()
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    assert {tuple(row) for row in rows} == {COLUMNS} == {("run", "step", "lr", "loss", "smoothed_loss")}
    assert columns["run"] == [0] * 100 + [1] * 40
    assert columns["step"] == [*range(100), *range(40)]
    assert columns["lr"] == RATES + RATES[:40]
    assert columns["loss"] == runs[0] + runs[1]
    assert columns["smoothed_loss"] == smooth(runs[0]) + smooth(runs[1])


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.123456, 0.123), (0.0019996, 0.002), (1.2345e-5, 1.23e-5), (9.999, 10.0), (2.0, 2.0)]
)
def test_three_digits_are_left_of_a_rate(rate, expected):
    assert three_digits(rate) == expected


@pytest.mark.parametrize("shown", ["{:.3g}", "{:#.3g}", "{}"])
def test_what_is_shown_is_the_rate_itself(shown):
    for rate in np.random.default_rng(0).uniform(-8, 2, 200):
        rounded = three_digits(10**rate)
        assert float(shown.format(rounded)) == rounded == three_digits(rounded)
        assert rounded == pytest.approx(10**rate, rel=0.005)
