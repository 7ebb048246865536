"""Charts are read back as XML: what they draw, where, and that names are text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from report_runs import HOSTILE

from cifar_resnets.figures.charts import (
    LEFT,
    RIGHT,
    WIDTH,
    Series,
    difference_bar,
    heat_grid,
    line_chart,
    proportion_bar,
    reliability_chart,
)
from cifar_resnets.results.csv_files import Curve


def curve(*y: float) -> Curve:
    return Curve(np.arange(1.0, len(y) + 1), np.array(y))


def parsed(svg: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def paths(svg: Markup, kind: str) -> list[str]:
    return [each.get("d", "") for each in parsed(svg).iter("path") if kind in each.get("class", "").split()]


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"-?\d+\.?\d*", text)]


def test_a_line_goes_through_its_points() -> None:
    chart = line_chart([Series("loss", curve(1.0, 3.0, 2.0))], "Loss", height=220)
    assert chart is not None
    [line] = paths(chart.svg, "line")
    x, y = np.array(numbers(line)).reshape(-1, 2).T
    assert np.diff(x)[0] == pytest.approx(np.diff(x)[1], abs=0.11)
    assert LEFT <= x.min() < x.max() <= WIDTH - RIGHT
    # heights are as the values are, upwards
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.5, abs=0.01)
    assert y[1] < y[2] < y[0]


def test_a_gap_where_a_value_is_no_number_and_a_dot_where_it_stands_alone() -> None:
    chart = line_chart([Series("loss", curve(*[1.0] * 20, math.nan, 2.0, math.inf, 3.0, 4.0))], "Loss")
    assert chart is not None
    [line] = paths(chart.svg, "line")
    assert line.count("M") == 3
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg
    [dot] = parsed(chart.svg).iter("circle")
    assert f"M{dot.get('cx')} {dot.get('cy')}M" in line


def test_nothing_to_draw() -> None:
    assert line_chart([], "Loss") is None
    assert line_chart([Series("loss", curve(math.nan))], "Loss") is None


def test_the_axis_is_logarithmic_where_the_values_ask_for_it() -> None:
    charts = [line_chart([Series("loss", curve(*y))], "Loss") for y in ((0.01, 2.0), (1.0, 2.0), (0.0, 50.0))]
    assert [chart and chart.log for chart in charts] == [True, False, False]


def test_what_is_beyond_the_axis_is_cut_and_not_bent() -> None:
    chart = line_chart([Series("loss", curve(1.0, 2.0, 50.0))], "Loss", values=[1.0, 2.0], log_y=False)
    assert chart is not None
    inner = parsed(chart.svg).find("svg")
    assert inner is not None  # a nested drawing cuts what leaves it
    assert inner.get("viewBox", "").split() == [inner.get(key) for key in ("x", "y", "width", "height")]
    [line] = paths(chart.svg, "line")
    assert numbers(line)[-1] < 0


def test_names_are_text() -> None:
    series = [Series(name, curve(1.0, 2.0), number) for number, name in enumerate(HOSTILE)]
    chart = line_chart(series, HOSTILE[0], mark=(1.5, HOSTILE[1]), x_label=HOSTILE[2])
    assert chart is not None
    root = parsed(chart.svg)
    assert {each.tag for each in root.iter()} <= {"svg", "path", "text", "circle"}
    assert HOSTILE[0] in root.get("aria-label", "")
    texts = [each.text for each in root.iter("text")]
    assert HOSTILE[1] in texts
    assert HOSTILE[2] in texts
    assert not any(key.startswith("on") for each in root.iter() for key in each.keys())


def test_bars_are_as_long_as_their_figures() -> None:
    track, bar = parsed(proportion_bar(0.25, 0.1, 0.5)).iter("rect")
    assert float(bar.get("width", 0)) / float(track.get("width", 0)) == pytest.approx(0.25, abs=0.001)
    whisker, *ends = paths(proportion_bar(0.25, 0.1, 0.5), "whisker")
    left, _, right, _ = numbers(whisker)
    assert (right - left) / float(track.get("width", 0)) == pytest.approx(0.4, abs=0.01)
    assert len(ends) == 2
    [rise], [fall] = (list(parsed(difference_bar(d, 0.2)).iter("rect")) for d in (0.1, -0.2))
    assert (rise.get("class"), fall.get("class")) == ("rise", "fall")
    assert float(fall.get("width", 0)) == pytest.approx(2 * float(rise.get("width", 0)))
    assert parsed(difference_bar(0.0, 0.0)) is not None


def test_reliability_bars() -> None:
    counts = np.array([0, 10, 30])
    svg = reliability_chart(counts, np.array([np.nan, 0.5, 0.9]), np.array([np.nan, 0.6, 0.7]))
    rects = [(each.get("class"), float(each.get("height", 0))) for each in parsed(svg).iter("rect")]
    assert [kind for kind, _ in rects] == ["count", "hit", "gap"] * 2
    heights = [height for kind, height in rects if kind == "hit"]
    assert heights[0] / heights[1] == pytest.approx(0.6 / 0.7, abs=0.01)
    gaps = [height for kind, height in rects if kind == "gap"]
    assert gaps[0] / gaps[1] == pytest.approx(0.1 / 0.2, abs=0.02)
    bars = [height for kind, height in rects if kind == "count"]
    assert bars[0] / bars[1] == pytest.approx(1 / 3, abs=0.01)
    assert "nan" not in svg


def test_a_grid_has_a_cell_for_each_count() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 3, (100, 100)) * (rng.random((100, 100)) < 0.1) + 50 * np.eye(100, dtype=int)
    matrix[7] = 0  # a class without images
    svg = heat_grid(matrix)
    cells = {
        (kind, int(row), int(column))
        for kind in ("hit", "miss")
        for path in paths(svg, kind)
        for column, row in re.findall(r"M(\d+) (\d+)h1v1h-1z", path)
    }
    expected = {("hit" if r == c else "miss", int(r), int(c)) for r, c in np.argwhere(matrix)}
    assert cells == expected
    assert len(svg) < 100_000
    rows = [float(t.get("y", 0)) for t in parsed(svg).iter("text") if t.get("class") == "y"]
    assert rows == sorted(rows)  # class 0 above
    assert [t.text for t in parsed(svg).iter("text") if t.get("class") == "y"][0] == "0"
