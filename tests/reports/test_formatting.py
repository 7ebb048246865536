from __future__ import annotations

import pytest

from cifar_resnets.reports.formatting import duration, interval, joined, number, p_text, percent, points


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (59.94, "59.9 s"), (61, "1 min 01 s"), (3599.4, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_figures_keep_their_unit_on_their_line() -> None:
    assert percent(0.98765) == "98.77\N{NO-BREAK SPACE}%"
    assert interval((0.1, 0.25)) == "10.00 – 25.00\N{NO-BREAK SPACE}%"
    assert (points(0.0123), points(-0.5), points(0.0)) == ("+1.23", "−50.00", "+0.00")
    assert number(1234.5678) == "1,234.568"


def test_what_is_no_number_is_a_dash() -> None:
    assert {percent(None), percent(float("nan")), interval(None), number(None), number(float("inf"))} == {"–"}


def test_p_values() -> None:
    assert [p_text(p) for p in (1.0, 0.05, 0.00123, 1e-9)] == ["1.000", "0.050", "0.0012", "< 0.0001"]


def test_empty_parts_are_left_out() -> None:
    assert joined("a", "", "b") == "a, b"
