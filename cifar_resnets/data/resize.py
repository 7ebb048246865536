"""Resizes an image to a square: the one function with which all images of a run are resized, whoever reads them."""

from typing import Literal, get_args

from PIL import Image

from cifar_resnets.errors import ConfigurationError

Resize = Literal["squash", "crop", "pad"]
MODES: tuple[Resize, ...] = get_args(Resize)

_LONGEST = 16  # times the shorter side, of images that are resized as a whole
_MARGIN = 8, 7  # as timm resizes to 256 pixels to crop 224


def check_resize(resize: str, image_size: int) -> None:
    """Raises ConfigurationError for an unknown mode or a size out of range."""
    if resize not in MODES:
        raise ConfigurationError(f"data.resize: {resize!r} is not allowed, give {', '.join(MODES)}")
    if image_size < 1:
        raise ConfigurationError(f"data.image_size: {image_size} is not allowed, give 1 or more")


def stored_size(image_size: int) -> int:
    """Returns the side of the squares of which random crops of `image_size` pixels are taken: 8/7 of it, rounded up."""
    return -(-image_size * _MARGIN[0] // _MARGIN[1])


def resize_to_square(image: Image.Image, size: int, mode: Resize = "squash", background: str = "white") -> Image.Image:
    """Resizes an RGB image to a square, with bilinear, antialiased interpolation.

    Args:
        image: of any size.
        size: side of the result in pixels.
        mode: `squash` changes the proportions; `crop` resizes the shorter side, and takes the middle of the longer one;
            `pad` resizes the longer side, and fills what is left with `background`, half on each side.
        background: color of the padding.

    Returns:
        RGB, `size` x `size`; the image itself if it has that size.
    """
    if image.size == (size, size):
        return image
    if mode == "crop":
        return _crop(image, size)
    if mode == "pad":
        return _pad(image, size, background)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side, and takes the middle of the longer one, as torchvision's `Resize`, `CenterCrop` do."""
    shorter, longer = sorted(image.size)
    if longer > _LONGEST * shorter:  # resized, it would take gigabytes at the worst
        left, top = ((side - shorter) / 2 for side in image.size)
        box = (left, top, left + shorter, top + shorter)
        return image.resize((size, size), Image.Resampling.BILINEAR, box)
    width, height = (size * side // shorter for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def _pad(image: Image.Image, size: int, background: str) -> Image.Image:
    """Resizes the longer side, and fills what is left, half on each side."""
    longer = max(image.size)
    width, height = (max(size * side // longer, 1) for side in image.size)
    padded = Image.new("RGB", (size, size), background)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    padded.paste(resized, ((size - width) // 2, (size - height) // 2))
    return padded
