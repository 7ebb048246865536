"""Positions against numpy's interpolation; the values beside an axis by what a reader expects of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cifar_resnets.figures.axes import Axis, axis_over, spans_decades, tick_text


def test_positions_are_those_of_an_interpolation() -> None:
    values = np.linspace(2, 5, 7)
    linear = Axis(2, 5, 300, 10)  # from bottom to top
    assert [linear.at(v) for v in values] == pytest.approx(np.interp(values, [2, 5], [300, 10]))
    log = Axis(1e-3, 10, 40, 350, log=True)
    rates = np.geomspace(1e-3, 10, 9)
    assert [log.at(v) for v in rates] == pytest.approx(np.linspace(40, 350, 9))


def test_what_lies_far_beyond_an_end_stays_a_number() -> None:
    for axis in (Axis(0, 1, 0, 100), Axis(1e-3, 1, 0, 100, log=True)):
        assert all(math.isfinite(axis.at(value)) and abs(axis.at(value)) <= 300 for value in (-1e30, 0.0, 1e30))


@pytest.mark.parametrize(
    ("low", "span"), [(a, b) for a in (-3.0, 0.0, 1e-6, 9.0, 12345.0) for b in (1e-3, 2.0, 7.0, 1e6) if b > 1e-4 * a]
)
def test_linear_ticks_are_round_even_and_few(low: float, span: float) -> None:
    ticks = Axis(low, low + span, 0, 300).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-6 * span <= tick <= low + 1.000001 * span for tick in ticks)
    steps = np.diff(ticks)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))
    assert f"{steps[0]:.0e}"[0] in "125"
    assert len({tick_text(tick) for tick in ticks}) == len(ticks)


def test_logarithmic_ticks() -> None:
    assert Axis(1e-4, 10, 0, 300, log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1, 10])
    assert Axis(0.1, 2.5, 0, 200, log=True).ticks() == pytest.approx([0.1, 0.2, 0.5, 1, 2])
    assert len(Axis(1e-30, 1, 0, 300, log=True).ticks()) <= 8


def test_little_room_has_few_values_and_epochs_are_whole() -> None:
    assert len(Axis(0.85, 0.95, 56, 0).ticks()) <= 4
    assert Axis(1, 3, 0, 300, least_step=1).ticks() == [1, 2, 3]


def test_a_range_of_one_value_or_none() -> None:
    for values in ([], [math.nan], [0.9], [0.0], [-2.0]):
        axis = axis_over(values, 0, 100)
        assert axis.low < axis.high
        assert axis.ticks()
    assert axis_over([5.0, 99.9], 0, 100, whole=(0, 100)).high == 100
    assert axis_over([100.0], 0, 100, whole=(0, 100)).high == 100
    assert not axis_over([0.0, 1.0], 0, 100, log=True).log  # has no logarithm
    rounded = axis_over([0.949999988, 0.95], 0, 100)
    assert rounded.high - rounded.low > 0.1


def test_what_needs_a_logarithm() -> None:
    assert spans_decades([0.1, 2.0, math.inf])
    assert not spans_decades([1.0, 2.0])
    assert not spans_decades([0.0, 2.0])
    assert not spans_decades([])


@pytest.mark.parametrize(("value", "text"), [(0.1, "0.1"), (1e-4, "0.0001"), (1e-5, "1e-5"), (2e6, "2e6"), (0, "0")])
def test_tick_texts(value: float, text: str) -> None:
    assert tick_text(value) in (text, "1e-4" if value == 1e-4 else text)


@pytest.mark.parametrize("log", [False, True])
def test_what_is_nearly_infinite_or_nearly_nothing(log: bool) -> None:
    for values in ([1e308, 1.0], [-1e308, 1e308], [5e-324, 2.0], [1e-99, 1e99], [0.0, 1e-320]):
        axis = axis_over(values, 0, 100, log)
        assert all(map(math.isfinite, [axis.low, axis.high, *axis.ticks(), *map(axis.at, values)]))
    assert not spans_decades([1e-320, 2.0])
