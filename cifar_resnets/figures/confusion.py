"""Figures of an evaluation: the confusion matrix, the accuracy of each class, and the pairs that are confused most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_resnets.evaluation.calibration import ConfusedPair, Counts, Floats, row_percent
from cifar_resnets.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_NUMBERS = 20  # classes, up to which each cell and each bar has its number
STRENGTH = 0.5  # largest opacity of a cell's color below its number
ROW = 20.0  # points from one bar to the next, where there are few
NO_IMAGES = "no images"
_LEVELS = 32  # of opacity: the cells of one level are one shape


def plot_confusion(confusion: Counts, class_names: Sequence[str]) -> Figure:
    """Draws the confusion matrix: right ones are blue and wrong ones orange, the stronger the more of the true class.

    Up to 20 classes, each cell has its count and its percent of the true class.

    Args:
        confusion: counts (num_classes, num_classes); rows are true, columns predicted classes.
        class_names: in the order of the rows.
    """
    names, images = [style.shorten(name) for name in class_names], int(confusion.sum())
    numbered, cell = len(names) <= MOST_WITH_NUMBERS, _cell_size(len(names))
    side, margin = cell * len(names), style.text_width(names, style.font_size(cell)) + 30
    accuracy = confusion.diagonal().sum() / images if images else np.nan
    title = f"Accuracy {100 * accuracy:.2f} % of {images:,} images"
    figure = style.new_figure(max(side + margin + (0 if numbered else 80), 250), side + margin + 25, title)
    axes = figure.add_subplot(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    percent = row_percent(confusion)
    _fill_cells(axes, percent, STRENGTH if numbered else 1, gap=0.02 if numbered else 0)
    _mark_absent(axes, percent, style.font_size(cell))
    _name_sides(axes, names, cell)
    if numbered:
        _number_cells(axes, confusion, cell)
    else:
        _draw_scale(axes.inset_axes((1 + 10 / side, 1 - min(200 / side, 1), 24 / side, min(200 / side, 1))))
    return figure


def _cell_size(num_classes: int) -> float:
    """Returns the side of a cell in points: 600 for a hundred classes and more."""
    if num_classes <= MOST_WITH_NUMBERS:
        return max(28.0, min(75.0, 280 / num_classes))
    return min(600 / num_classes, max(6.0, 450 / num_classes))


def _fill_cells(axes: Axes, percent: Floats, strength: float, gap: float = 0) -> None:
    """Colors cells by the square root of their percent: a few percent are many for a mistake."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = (0.5 - gap) * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    levels, right = np.ceil(np.sqrt(np.nan_to_num(percent) / 100) * _LEVELS), np.eye(len(percent), dtype=bool)
    for color, chosen in ((style.BLUE, right), (style.ORANGE, ~right)):
        for level in np.unique(levels[chosen & (levels > 0)]):
            cells = np.argwhere(chosen & (levels == level))[:, ::-1]
            shape = Path.make_compound_path_from_polys(cells[:, None] + corners)
            opacity = strength * level / _LEVELS
            axes.add_patch(PathPatch(shape, facecolor=color, alpha=opacity, lw=0, antialiased=False))


def _mark_absent(axes: Axes, percent: Floats, size: float) -> None:
    for row in map(float, np.flatnonzero(np.isnan(percent).all(axis=1))):
        axes.axhspan(row - 0.48, row + 0.48, color=style.LINE, lw=0)
        axes.text((len(percent) - 1) / 2, row, NO_IMAGES, size=size, color=style.INK, ha="center", va="center")


def _name_sides(axes: Axes, names: Sequence[str], cell: float) -> None:
    style.name_rows(axes, names, cell)
    style.name_columns(axes, names, cell)
    axes.set_xlabel("predicted class", size=style.TEXT, color=style.MUTED)
    axes.set_ylabel("true class", size=style.TEXT, color=style.MUTED)
    axes.spines[:].set_color(style.LINE)


def cell_text(count: int, percent: float) -> str:
    """Returns the two lines of a cell of the matrix: its count and its percent of the true class."""
    return f"{count}\n{percent:.{1 if 0 < percent < 9.95 else 0}f}%"


def _number_cells(axes: Axes, confusion: Counts, cell: float) -> None:
    percent = row_percent(confusion)
    size = min(style.TEXT, cell * 0.32, cell / (0.66 * max(len(str(confusion.max())), 4)))
    layout: dict[str, Any] = {"ha": "center", "va": "center", "linespacing": 1.05, "in_layout": False}
    for row, column in np.argwhere(~np.isnan(percent)):
        text = cell_text(confusion[row, column], percent[row, column])
        color = style.INK if confusion[row, column] else style.MUTED
        axes.text(column, row, text, size=size, color=color, **layout)


def _draw_scale(axes: Axes) -> None:
    """Draws the colors of all percents, of right images to the left and of wrong ones to the right."""
    shares, levels = np.array([0, 1, 5, 10, 25, 50, 100]), np.arange(1, _LEVELS + 1) / _LEVELS
    for column, color in enumerate((style.BLUE, style.ORANGE)):
        axes.bar(column, 1 / _LEVELS, 1, levels - 1 / _LEVELS, color=[(color, level) for level in levels])
    axes.set(xlim=(-0.5, 1.5), ylim=(0, 1), yticks=np.sqrt(shares / 100), yticklabels=shares)
    axes.set_xticks((0, 1), ("right", "wrong"), rotation=90)
    axes.yaxis.set(ticks_position="right", label_position="right")
    axes.set_ylabel("percent of the true class", size=style.TEXT, color=style.MUTED)
    axes.tick_params(labelsize=0.9 * style.TEXT, color=style.MUTED, labelcolor=style.MUTED)
    axes.spines[:].set_color(style.MUTED)


def plot_class_accuracy(accuracy: Floats, intervals: Floats, class_names: Sequence[str]) -> Figure:
    """Draws a bar for each class with its interval, and the mean of the classes.

    Args:
        accuracy: from 0 to 1 (num_classes,); NaN for a class without images.
        intervals: lower and upper end of each 95 % interval (num_classes, 2).
        class_names: in the same order.
    """
    names, known = [style.shorten(name) for name in class_names], accuracy[~np.isnan(accuracy)]
    numbered, mean = len(names) <= MOST_WITH_NUMBERS, 100 * known.mean() if len(known) else np.nan
    row = ROW if numbered else min(700 / len(names), max(7.0, 300 / len(names)))
    figure = style.new_figure(style.WIDTH, row * len(names) + 65, f"Accuracy of the classes, mean {mean:.2f} %")
    axes = figure.add_subplot()
    _draw_bars(axes, 100 * accuracy, names, row, style.BLUE)
    axes.hlines(range(len(names)), *(100 * intervals.T), color=style.INK, lw=min(1.5, row / 10))
    axes.axvline(mean, color=style.ORANGE, ls="--", lw=1)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent, with 95 % intervals (Wilson)")
    for number, percent in enumerate(100 * accuracy):
        if np.isnan(percent):
            axes.text(2, number, NO_IMAGES, size=style.font_size(row), color=style.INK, va="center_baseline")
        elif numbered:
            axes.text(102, number, f"{percent:.1f}", size=style.TEXT, color=style.INK, va="center_baseline")
    return figure


def _draw_bars(axes: Axes, values: Floats, names: Sequence[str], row: float, color: str) -> None:
    """Draws horizontal bars, the first at the top."""
    style.apply(axes)
    axes.grid(visible=False)
    axes.barh(range(len(values)), np.nan_to_num(values), 0.72, color=color, alpha=0.75)
    axes.set_ylim(len(values) - 0.5, -0.5)
    style.name_rows(axes, names, row)


def plot_confused_pairs(pairs: Sequence[ConfusedPair], class_names: Sequence[str]) -> Figure:
    """Draws a bar for each pair of classes that are confused, as long as its count."""
    names = [f"{style.shorten(class_names[p.true], 14)} → {style.shorten(class_names[p.predicted], 14)}" for p in pairs]
    figure = style.new_figure(style.WIDTH, ROW * max(len(pairs), 2) + 55, "Confused most: true → predicted")
    if not pairs:
        figure.text(0.5, 0.4, "no image is taken for another class", size=style.TEXT, color=style.INK, ha="center")
        return figure
    axes, counts = figure.add_subplot(), np.array([pair.count for pair in pairs])
    _draw_bars(axes, counts, names, ROW, style.ORANGE)
    for number, pair in enumerate(pairs):
        text = f" {pair.count:,} ({pair.percent:.1f} %)"
        axes.text(pair.count, number, text, size=style.TEXT, color=style.INK, va="center_baseline")
    axes.set(xlim=(0, counts.max()), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("images (percent of the true class)")
    return figure
