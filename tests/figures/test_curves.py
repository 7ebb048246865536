"""Curves over the epochs: what the axes of a figure hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.axes import Axes

from cifar_resnets.figures.curves import Series, describe, drawable, plot_curves, spans_decades
from cifar_resnets.figures.render import to_image
from cifar_resnets.results.csv_files import Curve


def curve(*y: float) -> Curve:
    return Curve(np.arange(1.0, len(y) + 1), np.array(y, float))


def drawn(*curves: Curve, **options) -> Axes:
    series = [Series("loss", drawable(each), number) for number, each in enumerate(curves)]
    return plot_curves([series], **options).axes[0]


def test_a_line_goes_through_its_points() -> None:
    [line] = drawn(curve(1.0, 3.0, 2.0)).lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 1], [2, 3], [3, 2]])
    assert line.get_markevery() == [0, 1, 2]


def test_a_gap_where_a_value_is_no_number_and_a_dot_where_it_stands_alone() -> None:
    [line] = drawn(curve(*[1.0] * 20, math.nan, 2.0, math.inf, 3.0, 4.0)).lines
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [20, 22]
    assert line.get_markevery() == [21]


def test_what_axes_cannot_show_is_left_out() -> None:
    found = drawable(Curve(np.array([1, 1e308, 3, 1e-320]), np.array([1e308, 1, math.nan, 1e-320])))
    np.testing.assert_array_equal(found.x, [1, 3, 0])
    np.testing.assert_array_equal(found.y, [math.nan, math.nan, 0])


def test_the_axis_is_logarithmic_where_the_values_ask_for_it() -> None:
    scales = [drawn(curve(*y), log=True).get_yscale() for y in ((0.01, 2.0), (1.0, 2.0), (0.0, 50.0))]
    assert scales == ["log", "linear", "linear"]
    assert drawn(curve(0.01, 2.0)).get_yscale() == "linear"


def test_what_needs_a_logarithm() -> None:
    assert spans_decades(np.array([0.1, 2.0]))
    assert not spans_decades(np.array([1.0, 2.0]))
    assert not spans_decades(np.array([0.0, 2.0]))
    assert not spans_decades(np.array([]))


def test_limits_are_kept_but_for_the_width_of_a_line() -> None:
    assert drawn(curve(5.0, 99.9), limits=(0, 100)).get_ylim()[1] == 101
    assert drawn(curve(100.0), limits=(0, 100)).get_ylim() == pytest.approx((90, 101))
    assert drawn(curve(0.0, 500.0), limits=(0, 100)).get_ylim() == (-1, 101)


@pytest.mark.parametrize("values", [[0.9], [0.0], [-2.0], [0.949999988, 0.95], [1e-12] * 3])
def test_values_that_are_nearly_the_same_have_an_axis(values: list[float]) -> None:
    low, high = drawn(curve(*values)).get_ylim()
    assert low < min(values) <= max(values) < high
    assert high - low > 0.1 * max(map(abs, values))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[1e308, 1.0], [-1e308, 1e308, 0.0], [5e-324, 2.0], [1e-99, 1e99], [0.0, 1e-320], [-1e99, 1e99]]
)
def test_what_is_nearly_infinite_or_nearly_nothing_can_be_drawn(values: list[float], log: bool) -> None:
    axes = drawn(curve(*values), log=log)
    assert np.isfinite(axes.get_ylim()).all()
    assert to_image(axes.figure).size == (660, 410)


@pytest.mark.filterwarnings("error")
def test_a_run_of_one_epoch_can_be_drawn() -> None:
    axes = drawn(curve(1.0), curve(2.0))
    axes.figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_panels_share_the_epochs_and_runs_keep_their_colors() -> None:
    rates, momenta = ([Series(name, curve(*y), color) for color, name in enumerate("ab")] for y in ((1, 2), (3, 4)))
    above, below = plot_curves([rates, momenta]).axes
    assert above.get_xlim() == below.get_xlim()
    assert [line.get_color() for line in above.lines] == [line.get_color() for line in below.lines]
    assert above.lines[0].get_color() != above.lines[1].get_color()
    assert (above.get_xlabel(), below.get_xlabel()) == ("", "epoch")


def test_training_is_dashed() -> None:
    figure = plot_curves([[Series("a", curve(1, 2)), Series("a, training", curve(1, 2), style="dashed")]])
    assert [line.is_dashed() for line in figure.axes[0].lines] == [False, True]


def test_the_ends_of_curves_are_described() -> None:
    series = [Series("a", curve(math.nan, 2.30259, 0.00012345)), Series("<b>", curve(1.0))]
    assert describe(series) == "a from 2.303 to 0.0001234; <b> from 1 to 1"
