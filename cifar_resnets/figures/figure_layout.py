"""Figures that are laid out by hand, in pixels: a layout engine takes longer than all the drawing.

A point is a pixel, so that sizes of type and lines are in pixels, too. TensorBoard shows a picture 350 pixels wide
until it is clicked, by leaving out pixels: at twice that width lines have to be 2 pixels wide or more, letters large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifar_resnets.figures.lettering import text_width, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 700  # pixels
HEADER = 56  # pixels above the axes
TEXT = 20  # size of type, in pixels
_TITLE = 25
_LONGEST_NAME = 20  # characters
_DPI = 72  # points are pixels
_CLOSEST = 12.0  # pixels between the lines of names


def blank(width: float, height: float, title: str) -> Figure:
    """A figure of so many pixels, with a title in its first 48."""
    from matplotlib.figure import Figure  # half a second of import

    figure = Figure(figsize=(round(width) / _DPI, round(height) / _DPI), dpi=_DPI)
    size = min(_TITLE, 1.6 * width / len(title))  # a letter is about 0.6 of it
    figure.text(0.5, 1 - 25 / height, title, size=size, ha="center", va="center", parse_math=False)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Adds axes; all in pixels, from the figure's upper left corner."""
    whole_width, whole_height = figure.get_size_inches() * _DPI
    box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    axes = figure.add_axes(box)
    axes.tick_params(labelsize=TEXT, width=2, length=6)
    return axes


def shown(name: str, longest: int = _LONGEST_NAME) -> str:
    """A class' name on one line, its middle left out where it is long."""
    line = " ".join(name.encode("utf-8", "replace").decode().split())  # file names may hold bytes that are no UTF-8
    if len(line) <= longest:
        return line
    end = (longest - 1) // 2
    return f"{line[: longest - 1 - end]}…{line[-end:]}"


def type_size(pitch: float) -> float:
    """Size of type, in pixels, of lines that are so many pixels apart."""
    return min(TEXT, max(pitch, _CLOSEST) * 0.92)


def name_width(names: Sequence[str], pitch: float) -> float:
    """Pixels that the names take which are written: see `name_rows`."""
    return text_width([names[i] for i in _with_room(names, pitch)], type_size(pitch))


def name_rows(axes: Axes, names: Sequence[str], pitch: float) -> None:
    """Writes names to the left of rows 0, 1, ..., or of some of them where all would overlap.

    Args:
        axes: whose limits are final.
        names: as `shown` returns them.
        pitch: pixels from one row to the next.
    """
    rows = _with_room(names, pitch)
    at = np.column_stack([np.full(len(rows), axes.get_xlim()[0]), rows])
    write(axes, [names[i] for i in rows], at, type_size(pitch), align=1, shift=(-10, 0))
    axes.set_yticks([])


def name_columns(axes: Axes, names: Sequence[str], pitch: float) -> None:
    """Writes names below columns 0, 1, ...: see `name_rows`."""
    columns = _with_room(names, pitch)
    at = np.column_stack([columns, np.full(len(columns), axes.get_ylim()[0])])
    write(axes, [names[i] for i in columns], at, type_size(pitch), align=1, shift=(0, -10), rotated=True)
    axes.set_xticks([])


def _with_room(names: Sequence[str], pitch: float) -> range:
    return range(0, len(names), math.ceil(_CLOSEST / pitch))
