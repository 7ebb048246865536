"""Charts as inline SVG. Colours are classes that the page defines for light, dark and print; no name is ever markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cifar_resnets.figures.axes import Axis, axis_over, spans_decades, tick_text
from cifar_resnets.results.csv_files import Curve, Floats, finite

WIDTH = 360  # pixels: a phone's; a wider page shows several charts in a row
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 32
NUM_COLORS = 8
FEW = 16  # points, each of which is marked
LEVELS = 8  # of colour in a grid

Style = Literal["line", "dashed", "faint"]


@dataclass(frozen=True)
class Series:
    """A curve and how it is drawn.

    Args:
        label: what the legend says.
        curve: its points.
        color: number of its colour, from 0.
        style: solid, dashed, or thin and pale.
    """

    label: str
    curve: Curve
    color: int = 0
    style: Style = "line"

    @property
    def classes(self) -> str:
        """The CSS classes of its line."""
        return f"{self.style} s{self.color % NUM_COLORS}"


@dataclass(frozen=True)
class Chart:
    """A drawing with its legend, which the page sets around it.

    Args:
        svg: the drawing.
        legend: the series that it shows.
        log: whether its vertical axis is logarithmic.
    """

    svg: Markup
    legend: list[Series]
    log: bool = False


def line_chart(
    series: Sequence[Series],
    what: str,
    *,
    x_label: str = "epoch",
    height: int = 220,
    log_x: bool = False,
    log_y: bool | None = None,
    limits: tuple[float, float] | None = None,
    values: Iterable[float] | None = None,
    mark: tuple[float, str] | None = None,
) -> Chart | None:
    """Curves over one axis; None where there is nothing to be drawn.

    Args:
        series: the curves.
        what: what they show, for those who cannot see it.
        x_label: of the horizontal axis.
        height: pixels, of 360 in width.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the vertical axis is; where the values ask for it if not given.
        limits: that the vertical axis does not leave.
        values: over which the vertical axis reaches; those of the curves if not given.
        mark: a place on the horizontal axis, and what is there.
    """
    shown = [each for each in series if len(finite(each.curve.y))]
    if not shown:
        return None
    y_values = np.concatenate([each.curve.y for each in shown])
    over = list(y_values if values is None else values)
    marked = [] if mark is None else [mark[0]]
    x = axis_over([*np.concatenate([each.curve.x for each in shown]), *marked], LEFT, WIDTH - RIGHT, log_x)
    x = replace(x, least_step=1.0)  # of whole epochs
    y = axis_over(over, height - BOTTOM, TOP, spans_decades(over) if log_y is None else log_y, limits)
    parts = [_frame(x, y, x_label), _clipped(x, y, [_line(each, x, y) for each in shown])]
    if mark is not None:
        parts.append(_mark(x, y, *mark))
    return Chart(_svg(height, f"{what}: {_spoken(shown)}", parts), shown, y.log)


def reliability_chart(counts: NDArray[np.int64], confidences: Floats, accuracies: Floats, height: int = 260) -> Markup:
    """Accuracy over confidence in bins of equal width, the gap to a calibrated network, and how many images each has.

    Source: Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", figure 1.

    Args:
        counts: images of each bin (num_bins,).
        confidences: mean probability of the predicted class (num_bins,), in any bin without images NaN.
        accuracies: part of the images that are right (num_bins,), likewise.
        height: pixels, of 360 in width.
    """
    x, y = Axis(0, 1, LEFT, WIDTH - RIGHT), Axis(0, 1, height - BOTTOM, TOP + 40)
    share = Axis(0, max(counts.max(initial=0) / max(counts.sum(), 1), 1e-9), TOP + 34, TOP)
    parts = [_frame(x, y, "confidence")]
    edges = np.linspace(0, 1, len(counts) + 1)
    for low, high, count, confidence, accuracy in zip(edges, edges[1:], counts, confidences, accuracies, strict=False):
        if count:
            parts.append(_box(x, share, low, high, 0, count / counts.sum(), "count"))
            parts.append(_box(x, y, low, high, 0, accuracy, "hit"))
            parts.append(_box(x, y, low, high, min(accuracy, confidence), max(accuracy, confidence), "gap"))
            parts.append(_path([(low, accuracy), (high, accuracy)], x, y, "level"))
    parts.append(_path([(0, 0), (1, 1)], x, y, "diagonal"))
    return _svg(height, f"Accuracy over confidence of {counts.sum():,} images", parts)


def proportion_bar(accuracy: float, low: float, high: float) -> Markup:
    """A bar from 0 to 1 with an interval, as high as a line of text."""
    x, y = Axis(0, 1, 1, 119), Axis(0, 14, 14, 0)
    middle = [(low, 7), (high, 7)]
    ends = [_path([(at, 4), (at, 10)], x, y, "whisker") for at in (low, high)]
    parts = [_box(x, y, 0, 1, 2, 12, "track"), _box(x, y, 0, accuracy, 2, 12, "fill")]
    return _small(120, [*parts, _path(middle, x, y, "whisker"), *ends])


def difference_bar(difference: float, largest: float) -> Markup:
    """A bar to the right where something rose and to the left where it fell, as high as a line of text."""
    x, y = Axis(-(largest or 1.0), largest or 1.0, 1, 119), Axis(0, 14, 14, 0)
    low, high = sorted((0.0, difference))
    bar = _box(x, y, low, high, 2, 12, "rise" if difference > 0 else "fall")
    return _small(120, [bar, _path([(0, 0), (0, 14)], x, y, "axis")])


def heat_grid(matrix: NDArray[np.int64]) -> Markup:
    """A confusion matrix without numbers, for many classes; the part of each true class is the strength of its colour.

    Args:
        matrix: counts (num_classes, num_classes), rows are true classes.
    """
    size = len(matrix)
    rows = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    levels = np.ceil(np.sqrt(rows) * LEVELS).astype(int)
    parts = [_cells(levels, level, kind) for kind in ("hit", "miss") for level in range(1, LEVELS + 1)]
    x, y = Axis(0, size, LEFT, WIDTH - RIGHT), Axis(0, size, TOP, TOP + WIDTH - RIGHT - LEFT)
    scale = (WIDTH - RIGHT - LEFT) / size
    grid = Markup('<g transform="translate({} {}) scale({:.4f})">{}</g>').format(LEFT, TOP, scale, _join(parts))
    frame = _frame(x, y, "predicted class")
    return _svg(WIDTH - RIGHT - LEFT + TOP + BOTTOM, f"Confusion matrix of {size} classes", [frame, grid])


def _cells(levels: NDArray[np.int64], level: int, kind: str) -> Markup:
    """All cells of one strength as one path, on or beside the diagonal."""
    diagonal = np.eye(len(levels), dtype=bool)
    found = np.argwhere((levels == level) & (diagonal if kind == "hit" else ~diagonal))
    path = "".join(f"M{column} {row}h1v1h-1z" for row, column in found)
    return Markup('<path class="{} l{}" d="{}"/>').format(kind, level, path) if path else Markup()


# What charts are made of.


def _svg(height: int, label: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, _join(parts)
    )


def _small(width: int, parts: Iterable[Markup]) -> Markup:
    # the figures stand beside it as text
    return Markup('<svg class="bar" viewBox="0 0 {} 14" aria-hidden="true">{}</svg>').format(width, _join(parts))


def _clipped(x: Axis, y: Axis, parts: Iterable[Markup]) -> Markup:
    """What lies between the axes, and not what lies beyond them."""
    box = f"{x.start - 3:g} {y.end - 3:g} {x.end - x.start + 6:g} {y.start - y.end + 4:g}"
    left, top, width, height = box.split()
    text = '<svg x="{}" y="{}" width="{}" height="{}" viewBox="{}">{}</svg>'
    return Markup(text).format(left, top, width, height, box, _join(parts))


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _frame(x: Axis, y: Axis, x_label: str) -> Markup:
    """Grid lines with their values, and the label of the horizontal axis."""
    left, right, bottom = x.start, x.end, max(y.start, y.end)
    parts = []
    for tick in y.ticks():
        at = y.at(tick)
        line = '<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/><text x="{:.1f}" y="{:.1f}" class="y">{}</text>'
        parts.append(Markup(line).format(left, at, right, left - 5, at + 4, tick_text(tick)))
    for tick in x.ticks():
        line = '<path class="grid" d="M{:.1f} {:.1f}v4"/><text x="{:.1f}" y="{:.1f}" class="x">{}</text>'
        parts.append(Markup(line).format(x.at(tick), bottom, x.at(tick), bottom + 16, tick_text(tick)))
    parts.append(Markup('<path class="axis" d="M{:.1f} {:.1f}H{:.1f}"/>').format(left, bottom, right))
    if x_label:
        middle = (left + right) / 2
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" class="x">{}</text>').format(middle, bottom + 29, x_label))
    return _join(parts)


def _line(series: Series, x: Axis, y: Axis) -> Markup:
    points = [(float(a), float(b)) for a, b in zip(series.curve.x, series.curve.y, strict=True)]
    shown = [points[i] for i in range(len(points)) if _stands_alone(points, i) or len(points) <= FEW]
    dots = [
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2"/>').format(series.classes, x.at(a), y.at(b))
        for a, b in shown
        if math.isfinite(b) and series.style != "faint"
    ]
    return _path(points, x, y, series.classes) + _join(dots)


def _stands_alone(points: Sequence[tuple[float, float]], index: int) -> bool:
    """Whether a point has no neighbour to draw a line to."""
    return not any(math.isfinite(points[i][1]) for i in (index - 1, index + 1) if 0 <= i < len(points))


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis, classes: str) -> Markup:
    """A line, with a gap at each value that is not finite."""
    commands, pen = [], "M"
    for a, b in points:
        if math.isfinite(b):
            commands.append(f"{pen}{x.at(a):.1f} {y.at(b):.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return Markup('<path class="{}" d="{}"/>').format(classes, "".join(commands)) if commands else Markup()


def _box(x: Axis, y: Axis, left: float, right: float, low: float, high: float, classes: str) -> Markup:
    text = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    return Markup(text).format(classes, x.at(left), y.at(high), x.at(right) - x.at(left), y.at(low) - y.at(high))


def _mark(x: Axis, y: Axis, value: float, label: str) -> Markup:
    at = x.at(value)
    anchor, gap = ("end", -5) if at > (x.start + x.end) / 2 else ("start", 5)
    line = '<path class="mark" d="M{0:.1f} {1:.1f}V{2:.1f}"/><text class="note {3}" x="{4:.1f}" y="{5:.1f}">{6}</text>'
    return Markup(line).format(at, y.start, y.end, anchor, at + gap, y.end + 10, label)


def _spoken(series: Sequence[Series]) -> str:
    """The figures in words."""
    return "; ".join(
        f"{each.label} from {tick_text(float(f'{values[0]:.4g}'))} to {tick_text(float(f'{values[-1]:.4g}'))}"
        for each in series
        if len(values := finite(each.curve.y))
    )
