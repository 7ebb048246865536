"""Scales images to panels of one size, and blends them with heatmaps and with the difference of two heatmaps."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

PANEL = 96  # side: an image of CIFAR-10 three times enlarged
TRUE, PREDICTED = (20, 80, 190), (190, 25, 25)  # colours of the true and of the predicted class
HEAT_ALPHA, DIFFERENCE_ALPHA = 0.75, 0.85


def as_bytes(heat: NDArray[np.floating]) -> Pixels:
    """Converts heatmaps from 0 to 1 to bytes from 0 to 255; NaN becomes 0."""
    pixels: Pixels = (np.nan_to_num(heat).clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def heated(images: Pixels, heat: Pixels) -> Pixels:
    """Blends images (n, h, w, 3) with the colours of heatmaps (n, h, w), which cover the image the more the hotter."""
    table, alpha = _heat_table()
    return _blended(images, table[heat], alpha[heat])


@functools.cache
def _heat_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from matplotlib import colormaps

    levels = np.linspace(0, 1, 256, dtype=np.float32)
    # without its black end, which would darken cold parts
    colors = colormaps["inferno"](0.25 + 0.75 * levels)[:, :3] * 255
    return colors.astype(np.float32), (HEAT_ALPHA * levels).astype(np.float32)


def difference(images: Pixels, predicted: Pixels, true: Pixels) -> Pixels:
    """Shows where two heatmaps differ over grey images (n, h, w, 3): red for the predicted class, blue for the true."""
    more = predicted.astype(np.int16) - true
    grey = images.mean(axis=-1, dtype=np.float32)[..., None] * 0.5 + 127
    color = np.array([TRUE, PREDICTED], np.float32)[(more > 0).astype(np.intp)]
    alpha = np.abs(more).astype(np.float32) * (DIFFERENCE_ALPHA / 255)
    return _blended(grey, color, alpha)


def _blended(below: NDArray[Any], above: NDArray[np.float32], alpha: NDArray[np.float32]) -> Pixels:
    pixels: Pixels = (below + (above - below) * alpha[..., None]).round().astype(np.uint8)
    return pixels


def shrunk(images: Pixels) -> Pixels:
    """Scales images (n, h, w) or (n, h, w, 3) that are larger than a panel down to it, by averaging."""
    height, width = images.shape[1:3]
    if max(height, width) <= PANEL:
        return images
    size = fitted_size(height, width)
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in images])


def enlarged(images: Pixels) -> Pixels:
    """Scales images (n, h, w, 3) to the size of a panel, without a blur."""
    height, width = images.shape[1:3]
    new_width, new_height = fitted_size(height, width)
    return images[:, _nearest(height, new_height)[:, None], _nearest(width, new_width)]


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    """Returns the old pixel that the centre of each new one lies in."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def fitted_size(height: int, width: int) -> tuple[int, int]:
    """Returns width and height of an image scaled so that its longer side is a panel's."""
    longer = max(height, width)
    return max(1, round(width * PANEL / longer)), max(1, round(height * PANEL / longer))
