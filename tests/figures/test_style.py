"""Ticks by what a reader expects of them; names and sizes by the pixels that they take."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.axes import Axes

from cifar_resnets.figures.render import to_image
from cifar_resnets.figures.style import (
    TEXT,
    apply,
    font_size,
    name_columns,
    name_rows,
    new_figure,
    set_ticks,
    shorten,
    tick_text,
)


def labels(axes: Axes, low: float, high: float, **options: bool) -> list[str]:
    """The labels of a vertical axis, those within its limits."""
    axes.set(ylim=(low, high), yscale="log" if options.get("log") else "linear")
    set_ticks(axes.yaxis, **options)
    axes.figure.draw_without_rendering()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    return [label.get_text() for at, label in ticks if low <= at <= high]


@pytest.fixture
def axes() -> Axes:
    return new_figure(300, 200).add_subplot()


@pytest.mark.parametrize(
    ("low", "span"),
    [(a, b) for a in (-3.0, 0.0, 1e-13, 1e-6, 9.0, 12345.0) for b in (1e-13, 1e-3, 2.0, 7.0, 1e6) if b > 1e-4 * abs(a)],
)
def test_linear_ticks_are_round_even_and_few(axes: Axes, low: float, span: float) -> None:
    texts = labels(axes, low, low + span)
    assert 3 <= len(set(texts)) == len(texts) <= 7
    ticks = np.array(texts, float)
    assert np.diff(ticks) == pytest.approx(np.full(len(ticks) - 1, ticks[1] - ticks[0]), rel=1e-6)
    assert f"{ticks[1] - ticks[0]:.0e}"[0] in "125"
    assert axes.yaxis.get_offset_text().get_text() == ""


def test_logarithmic_ticks(axes: Axes) -> None:
    assert labels(axes, 1e-4, 10, log=True) == ["0.0001", "0.001", "0.01", "0.1", "1", "10"]
    assert labels(axes, 0.1, 2.5, log=True) == ["0.1", "0.2", "0.5", "1", "2"]
    assert labels(axes, 0.1, 0.2, log=True) == ["0.1", "0.12", "0.14", "0.16", "0.18", "0.2"]
    assert labels(axes, 0.11, 0.19, log=True) == ["0.12", "0.14", "0.16", "0.18"]
    assert 3 <= len(labels(axes, 1e-30, 1, log=True)) <= 8


def test_epochs_are_whole(axes: Axes) -> None:
    assert labels(axes, 0.9, 3.1, whole=True) == ["1", "2", "3"]
    assert labels(axes, 0.95, 1.05, whole=True) == ["1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (1e-4, "0.0001"), (1e-5, "1e-5"), (2e6, "2e6"), (0, "0"), (-1e-13, "-1e-13"), (1e100, "1e100")],
)
def test_tick_texts(value: float, text: str) -> None:
    assert tick_text(value) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("a\tb\n c", "a b c"),
        ("x" * 20, "x" * 20),
        ("abcdefghijklmnopqrstuvwxyz", "abcdefghij…rstuvwxyz"),
        ("\udcffa", "?a"),
        ("$\\alpha$", "$\\alpha$"),
    ],
)
def test_names_are_shown_on_one_line(name: str, expected: str) -> None:
    assert shorten(name) == expected
    assert len(expected) <= 20


@pytest.mark.parametrize(("pitch", "size"), [(25, TEXT), (10, 9.2), (1, 5.52)])
def test_type_is_as_large_as_its_lines_allow_and_never_too_small_to_read(pitch: float, size: float) -> None:
    assert font_size(pitch) == pytest.approx(size)


@pytest.mark.parametrize(("num", "pitch", "written"), [(4, 15, 4), (40, 1.5, 10)])
def test_names_are_left_out_where_they_would_overlap(num: int, pitch: float, written: int) -> None:
    figure = new_figure(300, 300)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.5, 0.5, 0.4, num * pitch / 300), xlim=(-0.5, num - 0.5), ylim=(num - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    name_rows(axes, [f"class {number}" for number in range(num)], pitch)
    ink = (np.asarray(to_image(figure)) != 255).any(axis=(1, 2)).astype(int)
    assert (np.diff(np.r_[0, ink]) == 1).sum() == written  # lines of text, apart from each other
    name_columns(axes, [f"class {number}" for number in range(num)], pitch)
    rotated = [label for label in axes.get_xticklabels() if label.get_rotation() == 90]
    assert [label.get_text() for label in rotated] == [f"class {n}" for n in range(0, num, num // written)]


def test_a_figure_has_two_pixels_a_point_and_its_title_above() -> None:
    picture = np.asarray(to_image(new_figure(350, 150, "A title with $dollars$")))
    assert picture.shape == (300, 700, 3)
    rows, columns = np.nonzero((picture != 255).any(axis=2))
    assert 3 < rows.min() and rows.max() < 48
    assert abs((columns.min() + columns.max()) / 2 - 350) < 4


def test_names_of_curves_are_not_parsed(axes: Axes) -> None:
    apply(axes)
    name_rows(axes, ["$x$"], 20)
    assert [label.get_parse_math() for label in axes.get_yticklabels()] == [False]
    assert re.fullmatch(r"#[0-9a-f]{6}", str(axes.get_yticklabels()[0].get_color()))
