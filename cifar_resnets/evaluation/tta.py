"""Test-time augmentation: averages the logits of several views of an image."""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnets.errors import ConfigurationError

MIRROR = "mirror"
ALLOWED = "mirror, or shift and a number of pixels such as shift1"


def check_views(names: Sequence[str], size: tuple[int, int] | None = None) -> None:
    """Checks the names of views for images of a height and width in pixels, if known.

    Raises:
        ConfigurationError: for an unknown name, a kind given twice, or a shift larger than the image.
    """
    for name in names:
        if name != MIRROR and not re.fullmatch(r"shift[1-9]\d*", name):
            raise ConfigurationError(f"model.tta: {name} is not allowed, give {ALLOWED}")
    if len({name.rstrip("0123456789") for name in names}) < len(names):
        raise ConfigurationError(f"model.tta: {', '.join(names)} is not allowed, give each kind of view once")
    if size and any(pixels >= min(size) for pixels in _shifts(names)):
        height, width = size
        raise ConfigurationError(f"model.tta: {', '.join(names)} is not allowed for images of {height}x{width} pixels")


def average_views(classify: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, names: Sequence[str]) -> Tensor:
    """Averages the logits of images over views of them.

    `mirror` gives half of the weight of each other view to its mirror image. `shift1` gives half of the weight to the
    image shifted by 1 pixel to the upper left and to the lower right, with its border mirrored; `shift2` by 2.

    Source: Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.5.

    Args:
        classify: returns logits (n, num_classes) of images.
        images: (n, c, h, w).
        logits: of the images themselves (n, num_classes).
        names: of the views, see `check_views`.

    Returns:
        (n, num_classes).
    """
    views = [(images, 1.0)]
    for pixels in _shifts(names):  # one or none
        height, width = images.shape[2:]
        padded = F.pad(images, (pixels,) * 4, mode="reflect")
        starts = (2 * pixels, 0)  # towards the upper left, the lower right
        shifted = (padded[:, :, start : start + height, start : start + width] for start in starts)
        views = [(images, 0.5), *((view, 0.25) for view in shifted)]
    share = 0.5 if MIRROR in names else 1.0
    total = torch.zeros_like(logits)
    for view, weight in views:
        total += weight * share * (logits if view is images else classify(view))
        if MIRROR in names:
            total += weight * share * classify(view.flip(3))
    return total


def _shifts(names: Sequence[str]) -> list[int]:
    return [int(name.removeprefix("shift")) for name in names if name != MIRROR]
