"""Draws classified images in rows: each beside its two probabilities and its heatmaps.

TensorBoard shows a picture 350 pixels wide until it is clicked, and then in its real size. A gallery is therefore 700
pixels wide, with letters that can still be read at half the size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cifar_resnets.figures import panels
from cifar_resnets.figures.lettering import Drawing, shown_name
from cifar_resnets.figures.lettering import font as _font
from cifar_resnets.figures.lettering import write_line as _text
from cifar_resnets.figures.panels import PANEL, PREDICTED, TRUE, Pixels

WIDTH = 700
GAP, MARGIN = 8, 6
ROW = PANEL + GAP
HEADER = 66
CAPTION = WIDTH - 2 * MARGIN - 4 * ROW  # width of the text beside the panels
SIGN = 27  # width of the sign before a name
TEXT, SMALL = 23, 18  # sizes of letters

INK, GREY, EMPTY = (32, 32, 32), (90, 90, 90), (240, 240, 240)
RIGHT, FIELD = (15, 115, 50), (0, 255, 255)


@dataclass(frozen=True)
class Gallery:
    """Classified images and their explanations."""

    images: Pixels  # (n, h, w, 3)
    index: NDArray[np.int64]  # (n,), place in the data
    labels: NDArray[np.int64]  # (n,), true classes
    predicted: NDArray[np.int64]  # (n,), most probable classes
    p_label: NDArray[np.float32]  # (n,), probability of the true class
    p_predicted: NDArray[np.float32]  # (n,), probability of the most probable class
    heat: NDArray[np.float32] | None = None  # (n, 2, h, w) from 0 to 1, for the predicted and for the true class
    fields: NDArray[np.float64] | None = None  # (n, 4), a box over each image: first row and column, and the last
    note: str = ""  # how the heatmaps were computed

    def __len__(self) -> int:
        return len(self.images)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns what is known of each image, as the columns of a table."""
        same = {name: getattr(self, name) for name in ("images", "index", "predicted", "p_label", "p_predicted")}
        return {**same, "label": self.labels}

    def pair(self, row: int) -> tuple[int, int]:
        """Returns the true and the predicted class of an image."""
        return int(self.labels[row]), int(self.predicted[row])


def gallery_height(num_rows: int) -> int:
    """Returns the height of a gallery in pixels, with its header."""
    return HEADER + num_rows * ROW


def draw_gallery(gallery: Gallery, class_names: Sequence[str], grouped: bool = False) -> Image.Image:
    """Draws a gallery in RGB, 700 pixels wide and `gallery_height` pixels high.

    Args:
        gallery: any number of images.
        class_names: names of the classes, in any language.
        grouped: whether to draw a line between images of different pairs of classes.
    """
    picture = Image.new("RGB", (WIDTH, gallery_height(len(gallery))), "white")
    draw = ImageDraw.Draw(picture)
    if not len(gallery):
        _text(draw, (MARGIN, HEADER // 2), "No misclassified images", TEXT, RIGHT, WIDTH)
        return picture
    for column, images in enumerate(_columns(gallery)):
        for row, panel in enumerate(images):
            picture.paste(Image.fromarray(panel), _corner(row, column, *panel.shape[:2]))
    _header(draw, gallery.note, has_heat=gallery.heat is not None)
    for row in range(len(gallery)):
        _caption(draw, gallery, row, class_names)
        if gallery.fields is not None:
            _box(draw, row, gallery.images.shape[1:3], gallery.fields[row])
        if grouped and row and gallery.pair(row) != gallery.pair(row - 1):
            y = HEADER + row * ROW
            draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=INK, width=2)
    return picture


def _columns(gallery: Gallery) -> list[Pixels]:
    """Returns the panels (n, h', w', 3) of each column: images, both heatmaps, their difference."""
    columns = [images := panels.shrunk(gallery.images)]
    if gallery.heat is not None:
        quantised = panels.as_bytes(gallery.heat)
        predicted, true = (panels.shrunk(quantised[:, of]) for of in range(2))
        differences = panels.difference(images, predicted, true)
        differences[gallery.labels == gallery.predicted] = EMPTY
        columns += [panels.heated(images, predicted), panels.heated(images, true), differences]
    return [panels.enlarged(each) for each in columns]


def _corner(row: int, column: int, height: int = PANEL, width: int = PANEL) -> tuple[int, int]:
    """Returns left and top of an image in the middle of a panel."""
    left, top = MARGIN + CAPTION + column * ROW + GAP, HEADER + row * ROW + GAP // 2
    return left + (PANEL - width) // 2, top + (PANEL - height) // 2


def _header(draw: Drawing, note: str, has_heat: bool) -> None:
    _text(draw, (MARGIN, 18), note, TEXT, GREY, WIDTH - 2 * MARGIN)
    _text(draw, (MARGIN, HEADER - 18), "✓ true", SMALL, TRUE, CAPTION)
    _text(draw, (MARGIN + 84, HEADER - 18), "✗ predicted", SMALL, PREDICTED, CAPTION)
    names = {"image": INK, "predicted": PREDICTED, "true": TRUE, "difference": INK}
    for column, (name, color) in enumerate(names.items()):
        if has_heat or column == 0:
            centre = _corner(0, column)[0] + PANEL // 2
            _text(draw, (centre, HEADER - 18), name, SMALL, color, ROW, "mm")


def _caption(draw: Drawing, gallery: Gallery, row: int, class_names: Sequence[str]) -> None:
    label, predicted = gallery.pair(row)
    right = label == predicted
    lines = [("✓", label, gallery.p_label[row], RIGHT if right else TRUE)]
    lines += [] if right else [("✗", predicted, gallery.p_predicted[row], PREDICTED)]
    middle, end = HEADER + row * ROW + 23, MARGIN + CAPTION - 4
    for sign, number, probability, color in lines:
        shown = f"{100 * float(probability):.1f} %"
        _text(draw, (end, middle), shown, TEXT, color, CAPTION, "rm")
        # not with the name, which may be written from right to left
        _text(draw, (MARGIN, middle), sign, TEXT, color, CAPTION)
        width = end - MARGIN - SIGN - _font(TEXT).getlength(shown) - 10
        _text(draw, (MARGIN + SIGN, middle), shown_name(class_names[number], number), TEXT, color, width)
        middle += 32
    if right:
        _text(draw, (MARGIN + SIGN, middle), "right", TEXT, RIGHT, CAPTION)
    _text(draw, (MARGIN, HEADER + row * ROW + 85), f"image {gallery.index[row]}", TEXT - 3, GREY, CAPTION)


def _box(draw: Drawing, row: int, size: Sequence[int], field: NDArray[np.float64]) -> None:
    """Draws the part of a field that lies in the image over its panel."""
    height, width = size
    new_width, new_height = panels.fitted_size(height, width)
    left, top = _corner(row, 0, new_height, new_width)
    first = np.clip(np.nan_to_num(field[:2]), 0, (height, width))
    last = np.clip(np.nan_to_num(field[2:]) + 1, 0, (height, width))
    scale = np.array([new_height / height, new_width / width])
    (y0, x0), (y1, x1) = np.round(first * scale), np.round(last * scale) - 1
    draw.rectangle((left + x0, top + y0, left + max(x0, x1), top + max(y0, y1)), outline=FIELD, width=2)
