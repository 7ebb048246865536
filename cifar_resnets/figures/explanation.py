"""Draws where a network looked in one image: for its prediction, for the class that comes second, the difference."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cifar_resnets.figures import panels
from cifar_resnets.figures.lettering import shown_name, write_line
from cifar_resnets.figures.panels import PREDICTED, TRUE, Pixels

SIDE = 224  # least length of a panel's longer side in pixels
GAP, CAPTION, TEXT = 8, 34, 20
INK = (32, 32, 32)
SECOND = TRUE  # colour of the class that comes second, which the difference has for it


def draw_explanation(
    image: Pixels, heat: NDArray[np.float32], classes: Sequence[tuple[str, int, float]]
) -> Image.Image:
    """Draws an image, its heat for the predicted class and for the second, and their difference, side by side.

    Args:
        image: uint8 (h, w, 3).
        heat: (2, h, w) from 0 to 1, of the two classes.
        classes: name, number and probability of the two.
    """
    pixels, (first, second) = image[None], panels.as_bytes(heat)
    strips = [pixels, panels.heated(pixels, first[None]), panels.heated(pixels, second[None])]
    strips.append(panels.difference(pixels, first[None], second[None]))
    colors = [INK, PREDICTED, SECOND, INK]
    captions = ["image", *(f"{shown_name(name, number)} {100 * p:.1f} %" for name, number, p in classes), "difference"]
    shown = [_enlarged(Image.fromarray(strip[0])) for strip in strips]
    width, height = shown[0].size
    column = max(width, SIDE)
    picture = Image.new("RGB", (4 * column + 5 * GAP, height + CAPTION + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for index, panel in enumerate(shown):
        left = GAP + index * (column + GAP)
        picture.paste(panel, (left + (column - width) // 2, GAP))
        middle = (left + column / 2, height + GAP + CAPTION / 2)
        write_line(draw, middle, captions[index], TEXT, colors[index], column, "mm")
    return picture


def _enlarged(image: Image.Image) -> Image.Image:
    """Enlarges a small image without a blur."""
    factor = max(1, round(SIDE / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
