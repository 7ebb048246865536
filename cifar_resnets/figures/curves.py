"""Curves over the epochs of a run, or of several over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cifar_resnets.figures import style
from cifar_resnets.results.csv_files import Curve, Floats, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 16  # points, each of which is marked
SAME = 1e-4  # part of a value, below which a difference is due to rounding
TINY, HUGE = 1e-100, 1e100  # beyond which a range under- or overflows

Style = Literal["line", "dashed"]
_LINES: dict[Style, dict[str, Any]] = {"line": {"lw": 1.7}, "dashed": {"lw": 1.2, "ls": (0, (4, 2.5))}}


@dataclass(frozen=True)
class Series:
    """A curve of `drawable` points and how it is drawn; `color` is a number from 0."""

    label: str
    curve: Curve
    color: int = 0
    style: Style = "line"


def drawable(curve: Curve) -> Curve:
    """Returns the points of a curve that axes can show: values beyond are NaN, and 0 if they are too close to it."""
    x, y = (np.where(np.abs(values) < TINY, 0.0, values) for values in (curve.x, curve.y))
    known = np.abs(x) < HUGE
    return Curve(x[known], np.where(np.abs(y) < HUGE, y, np.nan)[known])


def plot_curves(
    panels: Sequence[Sequence[Series]], log: bool = False, limits: tuple[float, float] | None = None
) -> Figure:
    """Draws curves over the epochs, one panel below the other.

    Args:
        panels: the curves of each; the first panel is the highest one.
        log: whether vertical axes are logarithmic where values span more than a decade.
        limits: which vertical axes do not leave, for example 0 and 100 percent.
    """
    figure, heights = style.new_figure(330, 205), (3, *[2] * (len(panels) - 1))
    all_axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, series in zip(all_axes, panels, strict=True):
        for each in series:
            _draw(axes, each)
        values = np.concatenate([finite(each.curve.y) for each in series])
        is_log = log and spans_decades(values)
        axes.set_yscale("log" if is_log else "linear")
        _set_limits(axes, values, limits)
        style.apply(axes)
        style.set_ticks(axes.yaxis, 5 if len(panels) == 1 else 4, is_log)
    style.set_ticks(axes.xaxis, whole=True)
    axes.set_xlabel("epoch")
    return figure


def _draw(axes: Axes, series: Series) -> None:
    x, y, color = series.curve.x, series.curve.y, style.PALETTE[f"s{series.color % style.NUM_SERIES}"]
    known = np.isfinite(np.pad(y, 1, constant_values=np.nan))
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])  # no line leads to them
    marked = range(len(x)) if len(x) <= FEW else alone
    axes.plot(x, y, color=color, marker="o", markersize=3, markevery=list(marked), **_LINES[series.style])


def _set_limits(axes: Axes, values: Floats, limits: tuple[float, float] | None) -> None:
    low, high = axes.get_ylim()
    if np.ptp(values) < SAME * np.abs(values).max() or not np.ptp(values):
        margin = 0.1 * np.abs(values).max() or 1.0
        low, high = values.min() - margin, values.max() + margin
    least, most = limits or (low, high)
    line = 0.01 * (most - least)  # half of its width, or more
    axes.set_ylim(max(low, least - line), min(high, most + line))


def spans_decades(values: Floats) -> bool:
    """Returns whether values can be distinguished on a logarithmic axis only."""
    return bool(len(values)) and values.min() > 0 and values.max() > 10 * values.min()


def describe(series: Sequence[Series]) -> str:
    """Returns the first and the last value of each curve, for those who cannot see them."""
    ends = [
        (each.label, *(style.tick_text(float(f"{y:.4g}")) for y in finite(each.curve.y)[[0, -1]])) for each in series
    ]
    return "; ".join(f"{label} from {first} to {last}" for label, first, last in ends)
