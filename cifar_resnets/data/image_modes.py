"""Converts images of any of Pillow's modes to upright, opaque RGB."""

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from cifar_resnets.errors import ConfigurationError


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Converts an image to RGB.

    Args:
        image: of any mode; it is turned in place as its EXIF orientation says.
        background: color behind transparent pixels.

    Returns:
        The image; grey levels beyond 8 bits are scaled, see `white_level`.
    """
    image.load()  # raises for a damaged file, before errors are suppressed
    # metadata may be malformed; in place, the pixels are turned before the tag is removed from it
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow knows no direct way from premultiplied grey
    transparent = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), transparent).convert("RGB")


def check_color(key: str, color: str) -> None:
    """Raises ConfigurationError for a color that Pillow does not know."""
    try:
        ImageColor.getrgb(color)
    except ValueError as error:
        allowed = "a name such as white or a value such as '#808080'"
        raise ConfigurationError(f"{key}: {color!r} is not allowed, give {allowed}") from error


def white_level(image: Image.Image) -> int | None:
    """Returns the value that is white by the type of an image.

    That is 65,535 for 16 bits, and 1 for floats from 0 to 1. Integers of 32 bits and other floats have none: what is
    white depends on who wrote them.
    """
    if image.mode == "F":
        low, high = _range(np.asarray(image))
        return 1 if low >= 0 and high <= 1 else None
    if image.mode == "I" and image.format != "PPM":  # Pillow reads 16 bits of PGM files, and of no other format, as 32
        return None
    return 65535 if image.mode[0] == "I" else 255


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey levels by the white level, or else by the range of the file, in which 0 stays black if it can."""
    values, white = np.asarray(image).astype(np.float64), white_level(image)
    low, high = (0, white) if white else _range(values)
    scaled = (values - low) * 255 / ((high - low) or 1)
    grey = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).round().clip(0, 255).astype(np.uint8)
    result = Image.fromarray(grey)
    if isinstance(transparent := image.info.get("transparency"), int):  # one grey level of a PNG file
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


def _range(values: NDArray[Any]) -> tuple[float, float]:
    """Returns the smallest value, or 0 if all are above, and the largest one; infinite values and NaN do not count."""
    finite = values[np.isfinite(values)]
    return (min(float(finite.min()), 0.0), float(finite.max())) if finite.size else (0.0, 0.0)
