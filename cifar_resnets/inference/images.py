"""Converts what a caller has, paths, Pillow's images or arrays, to the pixels that a network takes."""

import os
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_resnets.data.image_files import to_pixels
from cifar_resnets.data.resize import Resize
from cifar_resnets.errors import ConfigurationError, DataError
from cifar_resnets.inference.decoding import Pixels, decode_files
from cifar_resnets.inference.paths import Found

AnyImage = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
ALLOWED = "a path, an image of Pillow, or a uint8 array (h, w), (h, w, 3) or (h, w, 4)"
CHANNELS = (3, 4)  # RGB, and RGBA

_lock = threading.Lock()


def as_list(images: Iterable[AnyImage]) -> list[AnyImage]:
    """Returns images as a list; raises ConfigurationError for a single one, whose parts would be taken for images."""
    is_one = isinstance(images, (str, bytes, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4
    if is_one or not isinstance(images, Iterable):
        raise ConfigurationError("predict takes a list of images, give [image] for a single one")
    return list(images)


def read_image(image: AnyImage, image_size: int, background: str, resize: Resize = "squash") -> Pixels:
    """Decodes or converts an image as the training does; the image is left as it was.

    Returns:
        uint8 (image_size, image_size, 3).

    Raises:
        DataError: for a file that cannot be read.
        ConfigurationError: for something else than an image.
    """
    if isinstance(image, (str, os.PathLike)):
        batch = decode_files([Found(os.fspath(image))], image_size, background, resize)
        if problem := batch.found[0].problem:
            raise DataError(f"{os.fspath(image)} cannot be read: {problem}")
        pixels: Pixels = batch.pixels[0]
        return pixels
    if isinstance(image, Image.Image):
        return to_pixels(_copy(image), image_size, background, resize)
    return to_pixels(_from_array(image), image_size, background, resize)


def _copy(image: Image.Image) -> Image.Image:
    with _lock:  # the first use reads the file, which no two threads may do
        copy = image.copy()
    copy.format = image.format  # says which value is white, see `white_level`
    return copy


def _from_array(image: Any) -> Image.Image:
    is_image = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
    if is_image and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in CHANNELS)):
        return Image.fromarray(image)
    shape = f" {tuple(image.shape)} of {image.dtype}" if hasattr(image, "shape") and hasattr(image, "dtype") else ""
    raise ConfigurationError(f"predict: a {type(image).__name__}{shape} is not allowed, give {ALLOWED}")
