"""Images for the page: enlarged by the browser, so that a file stays small."""

from __future__ import annotations

import base64
import io

from PIL import Image

from cifar_resnets.figures.panels import Pixels, as_bytes, difference, heated, shrunk
from cifar_resnets.results.json_files import Mistakes


def thumbnail(mistakes: Mistakes, row: int) -> str:
    """Returns the address of an image as it is, at most as large as a panel."""
    return _address(shrunk(mistakes.images[row : row + 1])[0])


def panels(gallery: Mistakes, row: int) -> list[tuple[str, str]]:
    """Returns names and addresses of the pictures of an image: itself, under both heatmaps, and their difference."""
    image = shrunk(gallery.images[row : row + 1])
    shown = [("image", image)]
    if gallery.heat is not None:
        predicted, true = (shrunk(as_bytes(heat[row : row + 1])) for heat in gallery.heat)
        shown += [("predicted", heated(image, predicted)), ("true", heated(image, true))]
        shown += [("difference", difference(image, predicted, true))]
    return [(name, _address(pixels[0])) for name, pixels in shown]


def _address(image: Pixels) -> str:
    """Returns an image (h, w, 3) as a PNG inside an address."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
