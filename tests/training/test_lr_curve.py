"""The analysis of a range test: curves with a known result, without and with noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit

from cifar_resnets.training.lr_curve import (
    MIN_STEPS,
    SUGGESTIONS,
    centred,
    clipped,
    depths,
    divergence_start,
    find_problem,
    has_diverged,
    initial_level,
    minimum,
    slide,
    smooth,
    spaced_rates,
    start_of_descent,
    steep,
    valley,
)

RATES = np.geomspace(1e-4, 10, 100)
LEVEL = math.log(10)  # of ten classes
GRID = RATES[1] / RATES[0]
LOWEST, WIDTHS = (0.03, 0.1, 0.5), (0.12, 0.25)  # rates of the minimum; widths of the fall in decades
SEEDS = 50
CURVES = pytest.mark.parametrize(("lowest", "width"), [(lowest, width) for lowest in LOWEST for width in WIDTHS])
ALL = pytest.mark.parametrize("suggest", SUGGESTIONS.values(), ids=SUGGESTIONS)
FUNCTIONS = pytest.mark.parametrize(
    "function", [*SUGGESTIONS.values(), start_of_descent, divergence_start], ids=lambda f: f.__name__
)


def bowl(lowest: float, width: float, rates: np.ndarray = RATES) -> np.ndarray:
    """A sigmoid fall by 1 whose slope an exponential rise makes up for at `lowest`."""
    decades = np.log10(rates / lowest)
    slope = expit(4) * expit(-4) / width
    return LEVEL - expit(decades / width + 4) + 0.15 * slope * np.exp(decades / 0.15)


def fall_centre(lowest: float, width: float) -> float:
    return lowest / 10 ** (4 * width)


def well(centre: float, width: float) -> np.ndarray:
    """A fall and a rise that mirror each other."""
    return LEVEL - np.exp(-0.5 * (np.log10(RATES / centre) / width) ** 2)


def noisy(losses: np.ndarray, sigma: float) -> list[np.ndarray]:
    return [losses + np.random.default_rng(seed).normal(0, sigma, len(losses)) for seed in range(SEEDS)]


def share_within(factor: float, values: list[float], expected: float) -> float:
    return float(np.mean(np.abs(np.log(np.array(values) / expected)) <= math.log(factor)))


def problems(curves: list[np.ndarray]) -> list[str]:
    return [problem for losses in curves if (problem := find_problem(RATES, losses))]


# The suggestions.


@CURVES
def test_the_curve_of_these_tests_has_its_minimum_where_it_says(lowest, width):
    fine = np.geomspace(1e-4, 10, 100_001)
    assert fine[bowl(lowest, width, fine).argmin()] == pytest.approx(lowest, rel=1e-3)


@CURVES
def test_the_valley_lies_between_the_steepest_point_and_the_minimum(lowest, width):
    assert fall_centre(lowest, width) < valley(RATES, bowl(lowest, width)) < 1.25 * lowest


@pytest.mark.parametrize("centre", LOWEST)
@pytest.mark.parametrize("width", [0.2, 0.4])
def test_the_valley_of_a_curve_that_mirrors_itself_is_its_centre(centre, width):
    assert valley(RATES, well(centre, width)) == pytest.approx(centre, rel=0.02)


@pytest.mark.parametrize("centre", LOWEST)
@pytest.mark.parametrize(("left", "right"), [(0.3, 0.6), (0.6, 0.3)])
def test_the_valley_of_two_halves_of_gaussians_is_the_mean_of_a_split_normal_distribution(centre, left, right):
    losses = np.where(RATES < centre, well(centre, left), well(centre, right))
    # the square divides the deviations by the root of two
    expected = centre * 10 ** (math.sqrt(2 / math.pi) * (right - left) / math.sqrt(2))
    assert valley(RATES, losses) == pytest.approx(expected, rel=0.1)


@CURVES
def test_the_steepest_point_is_the_centre_of_the_fall(lowest, width):
    assert steep(RATES, bowl(lowest, width)) == pytest.approx(fall_centre(lowest, width), rel=0.1)


@pytest.mark.parametrize("centre", LOWEST)
@pytest.mark.parametrize("width", [0.3, 0.5])
def test_the_steepest_point_of_a_gaussian_is_a_ratio_of_gamma_functions_away_from_its_centre(centre, width):
    # a Gaussian smoothed by a Gaussian, here of 5 steps, is a wider one; with u its distance in standard deviations
    # its slope is u exp(-u^2 / 2), and the centre of gravity of the fourth power of that is
    distance = math.gamma(3) / (2 * 2**3) / (math.gamma(2.5) / (2 * 2**2.5))
    wider = math.hypot(width, 5 * math.log10(GRID))
    assert steep(RATES, well(centre, width)) == pytest.approx(centre / 10 ** (distance * wider), rel=0.03)


@CURVES
def test_the_minimum_is_a_tenth_of_the_rate_of_the_smallest_loss(lowest, width):
    losses = bowl(lowest, width)
    ratio = minimum(RATES, losses) / (RATES[losses.argmin()] / 10)
    assert 1 / GRID <= ratio * (1 + 1e-9) and ratio <= GRID * (1 + 1e-9)


@CURVES
def test_the_slide_ends_where_the_loss_no_longer_rises_over_15_steps(lowest, width):
    losses = bowl(lowest, width)
    [falling] = np.nonzero((losses[15:] <= losses[:-15]) & (losses[15:] < LEVEL - 0.5))
    assert slide(RATES, losses) == pytest.approx(RATES[falling[-1]], rel=GRID**2 - 1)


@CURVES
def test_the_slide_lies_between_the_steepest_point_and_the_rise(lowest, width):
    losses = bowl(lowest, width)
    assert steep(RATES, losses) < slide(RATES, losses) < lowest


@CURVES
@ALL
@pytest.mark.parametrize("sigma", [0.05, 0.15])
def test_noise_hardly_moves_a_suggestion(suggest, lowest, width, sigma):
    losses = bowl(lowest, width)
    values = [suggest(RATES, each) for each in noisy(losses, sigma)]
    assert share_within(3, values, suggest(RATES, losses)) >= 0.95


@CURVES
@ALL
def test_a_curve_that_ends_where_it_diverges_gives_about_the_same(suggest, lowest, width):
    losses = bowl(lowest, width)
    end = next(end for end in range(1, 101) if has_diverged(losses[:end].tolist(), 4))
    assert end < 100
    assert share_within(1.5, [suggest(RATES[:end], losses[:end])], suggest(RATES, losses)) == 1


@CURVES
@pytest.mark.parametrize("height", [0.5, 2.0, 100.0])
@pytest.mark.parametrize("place", [0.25, 0.5, 1.0, 1.5])
def test_a_short_instability_in_the_valley_hardly_moves_it(lowest, width, height, place):
    losses = bowl(lowest, width)
    first = int(np.searchsorted(RATES, place * lowest)) - 2
    spiked = losses.copy()
    spiked[first : first + 5] += height
    assert share_within(2, [valley(RATES, spiked)], valley(RATES, losses)) == 1


@CURVES
@FUNCTIONS
@pytest.mark.parametrize("diverged", [1e6, 1e12])
def test_how_far_the_loss_diverges_says_nothing(function, lowest, width, diverged):
    losses = bowl(lowest, width)
    above = np.flatnonzero(losses > LEVEL + 1)
    mild, wild = losses.copy(), losses.copy()
    mild[above], wild[above] = LEVEL + 1, diverged
    assert function(RATES, wild) == pytest.approx(function(RATES, mild), rel=0.1)


@pytest.mark.parametrize("losses", [np.full(100, 2.0), np.zeros(100), 2 + np.log10(RATES / 1e-4)])
@FUNCTIONS
def test_a_curve_without_a_fall_gives_some_rate_of_the_test(function, losses):
    assert 1e-5 * (1 - 1e-9) <= function(RATES, losses) <= 10


# Both ends of the valley.


@CURVES
def test_the_descent_starts_at_a_fifth_of_the_fall(lowest, width):
    a_fifth = fall_centre(lowest, width) * 10 ** (width * math.log(0.2 / 0.8))
    assert start_of_descent(RATES, bowl(lowest, width)) == pytest.approx(a_fifth, rel=GRID**2 - 1)


@pytest.mark.parametrize("centre", LOWEST)
def test_a_narrow_valley_has_a_descent_too(centre):
    wider = math.hypot(0.2, 3 * math.log10(GRID))
    a_fifth = centre / 10 ** (wider * math.sqrt(2 * math.log(5)))
    assert start_of_descent(RATES, well(centre, 0.2)) == pytest.approx(a_fifth, rel=GRID - 1)


@CURVES
def test_noise_hardly_moves_the_start_of_the_descent(lowest, width):
    losses = bowl(lowest, width)
    values = [start_of_descent(RATES, each) for each in noisy(losses, 0.05)]
    assert share_within(3, values, start_of_descent(RATES, losses)) >= 0.95


@CURVES
def test_a_divergence_starts_where_the_loss_is_back_at_its_initial_level(lowest, width):
    losses = bowl(lowest, width)
    back = RATES[np.flatnonzero(losses < losses[0])[-1] + 1]
    # the smoothing hastens the return by up to two standard deviations of 3 steps, or delays it
    assert share_within(GRID**6, [divergence_start(RATES, losses)], back) == 1


@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_without_a_divergence_it_starts_at_the_last_rate(sigma):
    for losses in noisy(LEVEL - expit(np.log10(RATES / 0.1) / 0.2), sigma):
        assert divergence_start(RATES, losses) == RATES[-1]


@CURVES
def test_the_rates_come_in_their_order(lowest, width):
    losses = bowl(lowest, width)
    functions = (start_of_descent, steep, slide, valley, divergence_start)
    assert list(np.argsort([function(RATES, losses) for function in functions])) == [0, 1, 2, 3, 4]


# What must not matter.


@FUNCTIONS
@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_rates_times_a_factor_multiply_what_is_found(function, factor):
    for losses in noisy(bowl(0.1, 0.25), 0.1)[:10]:
        assert function(factor * RATES, losses) == pytest.approx(factor * function(RATES, losses), rel=1e-9)


@FUNCTIONS
@pytest.mark.parametrize("change", [lambda y: y + 2.0, lambda y: y - 1.0, lambda y: 5 * y], ids=["+2", "-1", "*5"])
def test_losses_that_are_shifted_or_scaled_change_nothing(function: Callable, change):
    for losses in noisy(bowl(0.1, 0.25), 0.1)[:10]:
        assert function(RATES, change(losses)) == pytest.approx(function(RATES, losses), rel=1e-6)


@FUNCTIONS
def test_lists_are_as_good_as_arrays(function):
    losses = noisy(bowl(0.1, 0.12), 0.1)[0]
    from_lists = function(RATES.tolist(), losses.tolist())
    assert from_lists == function(RATES, losses) and type(from_lists) is float


@pytest.mark.parametrize("losses", [noisy(bowl(0.1, 0.12), 0.1)[0], np.full(100, LEVEL), bowl(0.1, 0.12)[:10]])
def test_a_problem_is_the_same_for_lists_and_arrays(losses):
    rates = RATES[: len(losses)]
    assert find_problem(rates.tolist(), losses.tolist()) == find_problem(rates, losses)


@pytest.mark.parametrize("convert", [np.array, list], ids=["array", "list"])
def test_the_inputs_are_left_alone(convert):
    rates, losses = convert(RATES), convert(noisy(bowl(0.1, 0.12), 0.1)[0])
    before = np.array(rates), np.array(losses)
    for function in (*SUGGESTIONS.values(), start_of_descent, divergence_start, find_problem):
        function(rates, losses)
    for function in (smooth, initial_level, centred, clipped, depths):
        function(losses)
    np.testing.assert_array_equal(rates, before[0])
    np.testing.assert_array_equal(losses, before[1])


# Problems.


@CURVES
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.2])
def test_a_good_curve_has_no_problem(lowest, width, sigma):
    assert problems(noisy(bowl(lowest, width), sigma)) == []


@pytest.mark.parametrize("diverged", [20.0, 1e6])
def test_a_curve_that_falls_until_it_diverges_at_once_has_no_problem(diverged):
    losses = LEVEL - expit(np.log10(RATES) / 0.2)
    assert find_problem(RATES, losses) is not None
    losses[-1] = diverged
    assert find_problem(RATES, losses) is None


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.15, 0.5])
def test_a_flat_curve_gives_a_problem_and_not_a_rate(sigma):
    found = problems(noisy(np.full(100, LEVEL), sigma))
    assert len(found) >= 0.95 * SEEDS
    assert all("is flat or too noisy" in problem and "try more num_steps" in problem for problem in found)


def test_a_fall_within_the_noise_is_a_problem():
    assert find_problem(RATES, bowl(0.1, 0.25)) is None
    shallow = LEVEL + 0.05 * (bowl(0.1, 0.25) - LEVEL)
    assert len(problems(noisy(shallow, 0.15))) >= 0.95 * SEEDS


def test_a_curve_that_only_rises_wants_a_lower_min_lr():
    problem = find_problem(RATES, LEVEL + np.log10(RATES / RATES[0]))
    assert problem == "the loss only rises from 0.0001 on, try a lower min_lr"


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.15])
@pytest.mark.parametrize(
    "rise",
    [np.log10(RATES / RATES[0]), np.sqrt(np.log10(RATES / RATES[0])), RATES, 100 * RATES],
    ids=["logarithm", "root", "late", "early"],
)
def test_a_curve_that_only_rises_gives_a_problem_and_not_a_rate(rise, sigma):
    assert len(problems(noisy(LEVEL + rise, sigma))) >= 0.95 * SEEDS


@pytest.mark.parametrize("sigma", [0.0, 0.05])
@pytest.mark.parametrize(
    "losses",
    [LEVEL - 0.2 * np.log10(RATES / RATES[0]), LEVEL - expit(np.log10(RATES / 5) / 0.2)],
    ids=["line", "late fall"],
)
def test_a_curve_that_still_falls_at_the_highest_rate_wants_a_higher_max_lr(losses, sigma):
    found = problems(noisy(losses, sigma))
    assert len(found) >= 0.95 * SEEDS
    assert set(found) == {"the loss does not rise up to the highest rate, 10, try a higher max_lr"}


@pytest.mark.parametrize("steps", [1, 2, MIN_STEPS - 1])
def test_too_few_losses_want_a_lower_min_lr(steps):
    problem = find_problem(RATES[:steps], bowl(0.1, 0.12)[:steps])
    assert problem == f"the loss diverged after {steps} steps, try a lower min_lr"


def test_the_shortest_curve_can_do():
    rates = np.geomspace(1e-3, 10, MIN_STEPS)
    losses = bowl(0.1, 0.12, rates)
    assert find_problem(rates, losses) is None
    assert share_within(2, [valley(rates, losses)], valley(RATES, bowl(0.1, 0.12))) == 1


# The parts.


@pytest.mark.parametrize("ends", [(1e-4, 10.0), (1e-7, 0.3), (0.001, 0.1)])
@pytest.mark.parametrize("steps", [2, 15, 100])
@pytest.mark.parametrize(("spacing", "between"), [("exponential", np.geomspace), ("linear", np.linspace)])
def test_rates_are_spaced_as_numpy_does_and_end_exactly(ends, steps, spacing, between):
    rates = spaced_rates(*ends, steps, spacing)
    assert (rates[0], rates[-1]) == ends and {type(rate) for rate in rates} == {float}
    np.testing.assert_allclose(rates, between(*ends, steps), rtol=1e-12)
    steps_between = np.diff(np.log(rates) if spacing == "exponential" else rates)
    np.testing.assert_allclose(steps_between, steps_between[0], rtol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 0.98])
def test_smooth_is_a_weighted_mean_of_the_losses_so_far(factor):
    losses = np.random.default_rng(0).normal(2, 1, 60)
    expected = [
        np.average(losses[: step + 1], weights=factor ** np.arange(step, -1, -1, dtype=float)) for step in range(60)
    ]
    np.testing.assert_allclose(smooth(losses.tolist(), factor), expected, rtol=1e-10)


def test_smooth_leaves_a_constant_alone():
    np.testing.assert_allclose(smooth([0.7] * 50), 0.7, rtol=1e-12)
    assert smooth([]) == []


@pytest.mark.parametrize("factor", [2.5, 4.0])
def test_a_jump_has_diverged_when_its_weight_says_so(factor):
    # k losses of 10 after n of 1: the mean is 1 + 9 (1 - 0.9^k) / (1 - 0.9^(n + k)), the smallest 1
    after = np.arange(1, 30)
    expected = 1 + 9 * (1 - 0.9**after) / (1 - 0.9 ** (20 + after)) > factor
    assert [has_diverged([1.0] * 20 + [10.0] * k, factor) for k in after] == expected.tolist()
    assert not expected[0] and expected[-1]


@pytest.mark.parametrize("losses", [[2.3], [2.3] * 50, np.linspace(3, 0.1, 50), 2.3 + np.sin(np.arange(99))], ids=len)
def test_a_curve_that_stays_below_a_multiple_of_its_smallest_loss_has_not_diverged(losses):
    assert not has_diverged(list(losses), 4.0)


def test_a_divergence_is_one_from_the_smallest_loss_and_not_from_the_first():
    assert has_diverged([10.0] * 5 + [1.0] * 60 + [9.0] * 20, 4.0)


def test_a_curve_that_comes_down_again_has_not_diverged():
    assert has_diverged([1.0] * 20 + [50.0], 4.0)
    assert not has_diverged([1.0] * 20 + [50.0] + [1.0] * 20, 4.0)


@pytest.mark.parametrize(("steps", "first"), [(100, 10), (50, 5), (20, 3), (2, 2)])
def test_the_initial_level_is_the_median_of_the_first_tenth(steps, first):
    losses = np.random.default_rng(steps).normal(size=steps)
    assert initial_level(losses) == np.median(losses[:first])


@pytest.mark.parametrize(("steps", "deviation"), [(100, 3.0), (400, 12.0), (20, 1.5)])
def test_centred_is_the_gaussian_filter_of_scipy_with_the_edges_made_up_for(steps, deviation):
    losses = np.random.default_rng(steps).normal(2, 1, steps)
    known, inside = (
        gaussian_filter1d(values, deviation, mode="constant", truncate=12) for values in (losses, np.ones(steps))
    )
    np.testing.assert_allclose(centred(losses), known / inside, rtol=1e-9)


def test_centred_has_no_lag():
    losses = np.random.default_rng(0).normal(size=101)
    np.testing.assert_allclose(centred(losses[::-1]), centred(losses)[::-1], rtol=1e-9)


def test_what_is_clipped_lies_above_the_level_by_a_quarter_of_the_fall():
    losses = np.concatenate([np.full(40, 2.0), np.full(40, 1.0), np.full(20, 9.0)])
    expected = np.concatenate([losses[:80], np.full(20, 2.25)])
    np.testing.assert_allclose(clipped(losses), expected, rtol=1e-5)


def test_depths_are_parts_of_the_deepest_fall():
    losses = np.concatenate([np.full(40, 2.0), np.full(40, 1.6), np.full(40, 1.2), np.full(40, 9.0)])
    np.testing.assert_allclose(depths(losses)[20:160:40], [0, 0.5, 1, -0.25], atol=0.01)
    assert depths(losses).max() == 1
