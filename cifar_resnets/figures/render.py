"""A figure as an image, for TensorBoard and the run's folder, or as inline SVG, for the report."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cifar_resnets.figures.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {color: f"var(--{name})" for name, color in reversed(PALETTE.items())} | {"#000000": "var(--ink)"}
_UNUSED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>|<!--.*?-->|\n\s*", re.DOTALL)


def to_image(figure: Figure) -> Image.Image:
    """Returns the pixels of a figure as RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second of import

    canvas = FigureCanvasAgg(figure)  # without pyplot, which would keep the figure
    with _no_glyph_warnings():
        canvas.draw()  # type: ignore[no-untyped-call]  # of matplotlib
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]  # of matplotlib
    return Image.fromarray(np.asarray(pixels)).convert("RGB")


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Returns a figure as an SVG element whose colors are CSS variables and whose text is text.

    Args:
        figure: drawn in the colors of `style.PALETTE`.
        name: what no other figure of the page has, from which its ids are made.
        label: its description for screen readers.

    Returns:
        The element, the same for the same figure. Its CSS variable `--width` is its width in points.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": ascii(name), "font.sans-serif": ["DejaVu Sans"]}
    with rc_context(settings), _no_glyph_warnings():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    _, _, drawing = file.getvalue().partition("<svg")
    _, _, drawing = drawing.removesuffix("</svg>\n").partition(">")
    # text is escaped: each < and > belongs to a tag
    drawing = re.sub(r"<[^>]*>", _themed, _UNUSED.sub("", drawing))
    width, height = figure.get_size_inches() * 72
    box = f'viewBox="0 0 {width:.6g} {height:.6g}" style="--width:{width:.6g}"'
    return f'<svg class="chart" {box} role="img" aria-label="{html.escape(label)}">{drawing}</svg>'


def _themed(tag: re.Match[str]) -> str:
    """Returns a tag with CSS variables as colors, without the ids of groups, its numbers rounded."""
    text = re.sub(r"^<g id=\"[^\"]*\"", "<g", tag[0])
    text = re.sub(r"#[0-9a-f]{6}\b", lambda color: _VARIABLES.get(color[0], color[0]), text)
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a class name: a box is drawn
        yield
