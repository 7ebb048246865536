"""Figures laid out in pixels: what is asked for is where the pixels are."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cifar_resnets.figures.figure_layout import TEXT, blank, name_columns, name_rows, name_width, place, type_size


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def inked(picture: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row and column that are not white."""
    rows, columns = np.nonzero((picture != 255).any(axis=2))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_a_figure_has_its_size_in_pixels_and_its_title_in_the_first_48() -> None:
    picture = pixels(blank(700, 300, "A title with $dollars$"))
    assert picture.shape == (300, 700, 3)
    top, bottom, left, right = inked(picture)
    assert 5 < top and bottom < 48
    assert abs((left + right) / 2 - 350) < 3


def test_a_long_title_fits() -> None:
    *_, left, right = inked(pixels(blank(700, 100, "a rather long title " * 6)))
    assert left > 0 and right < 699


def test_axes_are_where_they_were_put() -> None:
    figure = Figure(figsize=(400 / 72, 200 / 72), dpi=72)
    axes = place(figure, left=30, top=20, width=100, height=50)
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.fill_between([0, 1], 0, 1, color="black", lw=0)
    assert inked(pixels(figure)) == pytest.approx((20, 69, 30, 129), abs=1)


@pytest.mark.parametrize(("pitch", "size"), [(50, TEXT), (20, 18.4), (1, 11.04)])
def test_type_is_as_large_as_its_lines_allow_and_never_too_small_to_read(pitch: float, size: float) -> None:
    assert type_size(pitch) == pytest.approx(size)


@pytest.mark.parametrize(("num", "pitch", "written"), [(4, 30, 4), (40, 3, 10)])
def test_names_are_left_out_where_they_would_overlap(num: int, pitch: float, written: int) -> None:
    names = [f"class {number}" for number in range(num)]
    figure = Figure(figsize=(400 / 72, 400 / 72), dpi=72)
    axes = place(figure, left=200, top=20, width=150, height=num * pitch)
    axes.set_axis_off()
    axes.set_xlim(-0.5, num - 0.5)
    axes.set_ylim(num - 0.5, -0.5)
    name_rows(axes, names, pitch)
    picture = pixels(figure)
    _, _, left, right = inked(picture)
    assert (left, right) == pytest.approx((190 - name_width(names, pitch), 190), abs=3)
    ink = (picture != 255).any(axis=(1, 2)).astype(int)
    assert (np.diff(np.r_[0, ink]) == 1).sum() == written  # lines of text, apart from each other
    name_columns(axes, names, pitch)
    assert inked(pixels(figure))[1] > 20 + num * pitch  # below the axes
