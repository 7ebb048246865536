"""Many short texts as one shape: matplotlib takes a millisecond or two for each `Text`, and a matrix has hundreds."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_MIDDLE = 0.36  # of a digit, above the baseline, in units of the size of type
_DIGITS = frozenset("0123456789.,%() ")  # are set one by one: few shapes, whatever the numbers
_Outline = tuple[NDArray[np.float32], NDArray[np.uint8], float]  # of size 1: points (n, 2), codes (n,), width


def write(
    axes: Axes,
    texts: Sequence[str],
    at: ArrayLike,
    size: float,
    *,
    align: float = 0.5,
    shift: tuple[float, float] = (0.0, 0.0),
    rotated: bool = False,
    color: str = "black",
) -> None:
    """Writes texts, which are never formulas, at places of axes whose limits are final.

    Args:
        axes: whose data coordinates count.
        texts: one line each.
        at: their places (n, 2).
        size: of the type, in points.
        align: which part of a text is left of its place: 0 to begin there, 1 to end there.
        shift: to the right and up, in points.
        rotated: whether they run upwards.
        color: of all.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    if not texts:
        return
    assert axes.figure is not None
    places = axes.transData.transform(np.asarray(at, float)) * 72 / axes.figure.dpi + shift
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]]) if rotated else np.eye(2)
    points, codes = [], []
    for text, place in zip(texts, places, strict=True):
        outline, kinds, width = _outline(text)
        points.append((outline - (align * width, _MIDDLE)) * size @ turn + place)
        codes.append(kinds)
    shape = Path(np.concatenate(points), np.concatenate(codes))
    to_pixels = Affine2D().scale(1 / 72) + axes.figure.dpi_scale_trans  # whatever the resolution is later
    axes.add_artist(PathPatch(shape, facecolor=color, lw=0, transform=to_pixels, clip_on=False))


def text_width(texts: Sequence[str], size: float) -> float:
    """Width of the widest text, in points."""
    return size * max((_outline(text)[2] for text in texts), default=0.0)


def _outline(text: str) -> _Outline:
    pieces = [_shape(piece) for piece in (text if text and _DIGITS.issuperset(text) else [text])]
    starts = np.cumsum([0.0, *(width for _, _, width in pieces)])
    points = [points + np.array([start, 0], np.float32) for (points, _, _), start in zip(pieces, starts, strict=False)]
    return np.concatenate(points), np.concatenate([codes for _, codes, _ in pieces]), float(starts[-1])


@functools.lru_cache(maxsize=1024)  # the names of the classes come again in each figure
def _shape(text: str) -> _Outline:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is a box
        points, codes = text_to_path.get_text_path(font, text, ismath=False)
        # between digits, as the width of a space alone is 0
        with_, without = (
            text_to_path.get_text_width_height_descent(t, font, ismath=False)[0] for t in (f"0{text}0", "00")
        )
    small = np.reshape(points, (-1, 2)).astype(np.float32) / text_to_path.FONT_SCALE
    return small, np.asarray(codes, np.uint8), with_ - without
