"""Figures of an evaluation: the confusion matrix, the accuracy of each class, and the pairs that are confused most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifar_resnets.evaluation.calibration import ConfusedPair, Counts, Floats, row_percent
from cifar_resnets.figures.figure_layout import (
    HEADER,
    TEXT,
    WIDTH,
    blank,
    name_columns,
    name_rows,
    name_width,
    place,
    shown,
    type_size,
)
from cifar_resnets.figures.lettering import text_width, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_NUMBERS = 20  # classes, up to which each cell and each bar has its number
ROW = 40.0  # pixels a bar, where there are few
NO_IMAGES = "no images"


def plot_confusion(confusion: Counts, class_names: Sequence[str]) -> Figure:
    """Draws the confusion matrix: colours are percent of the true class; up to 20 classes, counts and percent, too.

    Args:
        confusion: counts (num_classes, num_classes); rows are true, columns predicted classes.
        class_names: names of the classes.
    """
    names, images = [shown(name) for name in class_names], int(confusion.sum())
    numbered, cell = len(names) <= MOST_WITH_NUMBERS, _cell_size(len(names))
    side, margin = cell * len(names), name_width(names, cell) + 55
    accuracy = confusion.diagonal().sum() / images if images else np.nan
    heading = f"Accuracy {100 * accuracy:.2f} % of {images:,} images"
    figure = blank(max(margin + side + (15 if numbered else 120), 480), HEADER + side + margin, heading)
    axes = place(figure, margin, HEADER, side, side)
    _fill_cells(axes, row_percent(confusion), cell)
    _name_sides(axes, names, cell)
    if numbered:
        _number_cells(axes, confusion, cell)
    else:
        _draw_scale(place(figure, margin + side + 20, HEADER, 24, min(side, 400)))
    return figure


def _cell_size(num_classes: int) -> float:
    """Pixels: 1,200 for a hundred classes and more."""
    if num_classes <= MOST_WITH_NUMBERS:
        return max(46.0, min(150.0, 560 / num_classes))
    return min(1200 / num_classes, max(12.0, 900 / num_classes))


def _colors(percent: Floats) -> Floats:
    """RGBA (..., 4), by the square root: a few percent are a lot for a mistake, and would be white."""
    from matplotlib import colormaps

    return np.asarray(colormaps["Blues"].with_extremes(bad="lightgray")(np.sqrt(percent / 100)))


def _fill_cells(axes: Axes, percent: Floats, cell: float) -> None:
    axes.imshow(_colors(percent), interpolation="nearest", aspect="auto")
    absent = np.flatnonzero(np.isnan(percent).all(axis=1))
    at = np.column_stack([np.full(len(absent), (len(percent) - 1) / 2), absent])
    write(axes, [NO_IMAGES] * len(absent), at, type_size(cell))


def _name_sides(axes: Axes, names: Sequence[str], cell: float) -> None:
    name_rows(axes, names, cell)
    name_columns(axes, names, cell)
    away = name_width(names, cell) + 16  # pixels, behind the names
    axes.set_xlabel("predicted class", size=TEXT, labelpad=away)
    axes.set_ylabel("true class", size=TEXT, labelpad=away)


def cell_text(count: int, percent: float) -> tuple[str, str]:
    """What stands in a cell of the matrix, on two lines: its count and its percent of the true class."""
    return f"{count}", f"{percent:.{1 if 0 < percent < 9.95 else 0}f}%"


def _number_cells(axes: Axes, confusion: Counts, cell: float) -> None:
    percent = row_percent(confusion)
    size = min(TEXT, cell * 0.32, cell / (0.66 * max(len(str(confusion.max())), 4)))
    # none of these holds of a NaN
    shades = {"white": percent > 30, "black": (0 < percent) & (percent <= 30), "dimgray": percent == 0}
    for color, chosen in shades.items():
        cells = np.argwhere(chosen)
        for line, up in ((0, 0.6), (1, -0.6)):
            texts = [cell_text(confusion[row, column], percent[row, column])[line] for row, column in cells]
            write(axes, texts, cells[:, ::-1], size, shift=(0, up * size), color=color)


def _draw_scale(axes: Axes) -> None:
    shares = np.array([0, 1, 5, 10, 25, 50, 100])
    axes.imshow(_colors(100 * np.linspace(1, 0, 256)[:, None] ** 2), extent=(0, 1, 0, 1), aspect="auto")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_yticks(np.sqrt(shares / 100), [str(share) for share in shares])
    axes.set_ylabel("percent of the true class", size=TEXT)


def plot_class_accuracy(accuracy: Floats, intervals: Floats, class_names: Sequence[str]) -> Figure:
    """Draws a bar for each class with its interval, and the mean of the classes.

    Args:
        accuracy: from 0 to 1 (num_classes,); NaN for a class without images.
        intervals: lower and upper end of each 95 % interval (num_classes, 2).
        class_names: names of the classes.
    """
    names, known = [shown(name) for name in class_names], accuracy[~np.isnan(accuracy)]
    numbered, mean = len(names) <= MOST_WITH_NUMBERS, 100 * known.mean() if len(known) else np.nan
    row = ROW if numbered else min(1400 / len(names), max(14.0, 600 / len(names)))
    left, height = name_width(names, row) + 20, row * len(names)
    figure = blank(WIDTH, HEADER + height + 75, f"Accuracy of the classes, mean {mean:.2f} %")
    axes = place(figure, left, HEADER, WIDTH - left - (85 if numbered else 25), height)
    _draw_bars(axes, 100 * accuracy, row)
    axes.hlines(range(len(names)), *(100 * intervals.T), color="black", lw=min(3, row / 5))
    axes.axvline(mean, color="tab:red", ls="--", lw=2)
    axes.set_xlim(0, 100)
    name_rows(axes, names, row)
    _number_bars(axes, 100 * accuracy, row, numbered)
    axes.set_xlabel("percent, with 95 % intervals (Wilson)", size=TEXT)
    return figure


def _draw_bars(axes: Axes, values: Floats, row: float, color: str = "tab:blue") -> None:
    """Horizontal bars as thick lines, which are one shape; the first is at the top."""
    axes.hlines(range(len(values)), 0, np.nan_to_num(values), color=color, lw=0.72 * row, alpha=0.75, capstyle="butt")
    axes.set_ylim(len(values) - 0.5, -0.5)


def _number_bars(axes: Axes, percent: Floats, row: float, numbered: bool) -> None:
    absent, known = np.flatnonzero(np.isnan(percent)), np.flatnonzero(~np.isnan(percent))
    write(axes, [NO_IMAGES] * len(absent), np.column_stack([0 * absent, absent]), type_size(row), align=0, shift=(6, 0))
    if numbered:
        texts = [f"{percent[i]:.1f}" for i in known]
        write(axes, texts, np.column_stack([0 * known + 100, known]), TEXT, align=0, shift=(10, 0))


def plot_confused_pairs(pairs: Sequence[ConfusedPair], class_names: Sequence[str]) -> Figure:
    """Draws a bar for each pair of classes that are confused, as long as its count.

    Args:
        pairs: see `most_confused`.
        class_names: names of the classes.
    """
    names = [f"{shown(class_names[p.true], 14)} → {shown(class_names[p.predicted], 14)}" for p in pairs]
    figure = blank(WIDTH, HEADER + ROW * max(len(pairs), 2) + 45, "Confused most: true → predicted")
    if not pairs:
        figure.text(0.5, 0.4, "no image is taken for another class", size=TEXT, ha="center")
        return figure
    counts, texts = np.array([p.count for p in pairs]), [f"{p.count:,} ({p.percent:.1f} %)" for p in pairs]
    left = text_width(names, TEXT) + 20
    axes = place(figure, left, HEADER, WIDTH - left - text_width(texts, TEXT) - 20, ROW * len(pairs))
    _draw_bars(axes, counts, ROW, "tab:red")
    axes.set_xlim(0, counts.max())
    name_rows(axes, names, ROW)
    write(axes, texts, np.column_stack([counts, range(len(pairs))]), TEXT, align=0, shift=(8, 0))
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xlabel("images (percent of the true class)", size=TEXT)
    axes.set_xticks([])
    return figure
