"""Colors, sizes, names and ticks that all figures have in common.

Figures are laid out in points and about 360 points wide, as a phone is in CSS pixels. An image has two pixels a point:
TensorBoard halves it until it is clicked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cifar_resnets.support.text import elide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 350.0  # points
TEXT = 10.0  # font size, in points
NUM_SERIES = 8
# CSS variables of the report, with their values in its light scheme
PALETTE = {
    "bg": "#ffffff",
    "line": "#dfe3e8",
    "ink": "#16191d",
    "muted": "#57606b",
    "s0": "#1f5fbf",
    "s1": "#b84a08",
    "s2": "#17763f",
    "s3": "#8338bd",
    "s4": "#ad2259",
    "s5": "#0b6d80",
    "s6": "#6b6200",
    "s7": "#16191d",
    "over": "#eda66f",
    "under": "#9dbfec",
}
INK, MUTED, LINE = PALETTE["ink"], PALETTE["muted"], PALETTE["line"]
BLUE, ORANGE = PALETTE["s0"], PALETTE["s1"]

_DPI = 144
_LONGEST_NAME = 20  # characters
_CLOSEST = 6.0  # points between the lines of names


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Returns a figure of a size in points that arranges its axes and texts itself."""
    from matplotlib.figure import Figure  # half a second of import

    figure = Figure(figsize=(width / 72, height / 72), dpi=_DPI, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=1.2 * TEXT, color=INK, parse_math=False)
    return figure


def apply(axes: Axes) -> None:
    """Sets the colors, font sizes and ticks of axes with a linear scale, and hides the spines without ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(which="both", color=MUTED, labelcolor=MUTED, labelsize=TEXT)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=MUTED, fontsize=TEXT)
    axes.grid(axis="y", color=LINE, lw=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        set_ticks(axis)


def add_legend(axes: Axes, loc: str, size: float = TEXT) -> None:
    """Adds a legend whose names are text and no formulas."""
    style: dict[str, Any] = {"fontsize": size, "loc": loc, "labelcolor": INK, "edgecolor": LINE}
    for text in axes.legend(**style).get_texts():
        text.set_parse_math(False)


def set_ticks(axis: Axis, most: int = 6, log: bool = False, whole: bool = False) -> None:
    """Labels a few round values of an axis whose limits are final, without an offset or exponent beside it.

    There are at most `most` intervals between labels, and with `whole` only whole numbers.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if log else 0
    if decades > 1:
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=most + 1))
    else:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1 if whole else 2))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def tick_text(value: float) -> str:
    """Formats a value beside an axis, without leading zeros in its exponent."""
    return re.sub(r"e(-?)\+?0*", r"e\1", f"{value:.6g}")


def shorten(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns a class name on one line, with an ellipsis in the middle if it is long."""
    # file names may hold bytes that are not UTF-8
    return elide(" ".join(name.encode("utf-8", "replace").decode().split()), longest)


def font_size(pitch: float) -> float:
    """Returns the font size of lines of text that are `pitch` points apart."""
    return min(TEXT, max(pitch, _CLOSEST) * 0.92)


def text_width(texts: Sequence[str], size: float) -> float:
    """Estimates the width of the longest text in points; the layout measures it."""
    return 0.62 * size * max(map(len, texts), default=0)


def name_rows(axes: Axes, names: Sequence[str], pitch: float) -> None:
    """Writes names left of rows 0, 1, ... that are `pitch` points apart, leaving some out where all would overlap."""
    _write_names(axes.yaxis, names, pitch)


def name_columns(axes: Axes, names: Sequence[str], pitch: float) -> None:
    """Writes names below columns 0, 1, ...: see `name_rows`."""
    _write_names(axes.xaxis, names, pitch, rotation=90, rotation_mode="anchor", ha="right", va="center")


def _write_names(axis: Axis, names: Sequence[str], pitch: float, **style: Any) -> None:
    labelled = range(0, len(names), math.ceil(_CLOSEST / pitch))
    axis.set_ticks(labelled, [names[i] for i in labelled], fontsize=font_size(pitch), parse_math=False, **style)
    axis.set_tick_params(length=0, labelcolor=INK)
