"""Random resized crops of a batch: boxes that are drawn for a whole epoch, and images that are cut out and resized.

Source: Szegedy et al. (2014), "Going Deeper with Convolutions", section 6, in the version of timm and torchvision.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnets.data.augment import Augmentation
from cifar_resnets.errors import ConfigurationError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # timm's and torchvision's
_TRIES = 10


def check_crops(augmentation: Augmentation | None, takes_crops: bool) -> None:
    """Raises ConfigurationError for a setting of the other kind of crops than those that are taken.

    Args:
        augmentation: of the training images.
        takes_crops: whether random resized crops are taken, and not crops of padded images.
    """
    if augmentation is None:
        return
    for name in ("crop_scale", "crop_ratio"):
        if not takes_crops and getattr(augmentation, name) is not None:
            remedy = "give --data.resize crop or pad with --data ImageFolder, or leave it out"
            raise ConfigurationError(f"data.augment.{name}: there are no random resized crops: {remedy}")
    if takes_crops and augmentation.crop_padding not in (0, Augmentation.crop_padding):
        what = "images that are not squashed are not padded: give data.augment.crop_scale, or leave it out"
        raise ConfigurationError(f"data.augment.crop_padding: {what}")


def draw_boxes(
    augmentation: Augmentation, num_images: int, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draws boxes in images of `size` (height, width) as timm's `RandomResizedCropAndInterpolation` does, on the CPU.

    Of ten boxes, whose area and logarithm of the ratio are uniform, the first is taken that fits into the image; if
    none does, the largest one in the middle whose ratio is allowed.

    Returns:
        int64 (n, 4): top, left, height, width.
    """
    height, width = size
    (small, large), (narrow, wide) = augmentation.crop_scale or SCALE, augmentation.crop_ratio or RATIO
    draws = torch.rand(num_images, _TRIES, 4, dtype=torch.float64, generator=generator, device=generator.device).cpu()
    area = (small + draws[..., 0] * (large - small)) * height * width
    ratio = torch.exp(math.log(narrow) + draws[..., 1] * (math.log(wide) - math.log(narrow)))
    heights, widths = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
    tops, lefts = (draws[..., 2] * (height - heights + 1)).long(), (draws[..., 3] * (width - widths + 1)).long()
    boxes = torch.stack([tops, lefts, heights.clamp_(min=1), widths.clamp_(min=1)], dim=-1)
    fits = (heights <= height) & (widths <= width)
    first = fits.int().argmax(dim=1)
    chosen = boxes[torch.arange(num_images), first]
    in_ratio = min(max(width / height, narrow), wide)
    middle_h, middle_w = min(height, max(round(width / in_ratio), 1)), min(width, max(round(height * in_ratio), 1))
    middle = torch.tensor([(height - middle_h) // 2, (width - middle_w) // 2, middle_h, middle_w])
    return torch.where(fits.any(dim=1)[:, None], chosen, middle)


def resized_crops(images: Tensor, index: Tensor, boxes: Tensor, flips: Tensor, size: tuple[int, int]) -> Tensor:
    """Selects images by index, resizes a box of each, bilinear and antialiased, and mirrors it if its flip is true.

    torch has a fast kernel for a single uint8 image, whose bits are those of torchvision's `resized_crop`.

    Args:
        images: uint8 (N, H, W, c).
        index: (n,) indices of the N images.
        boxes: (n, 4) top, left, height, width, on the CPU.
        flips: (n,) of bool.
        size: height and width of the result.

    Returns:
        uint8 (n, h, w, c), contiguous.
    """
    result = images.new_empty(len(index), *size, images.shape[-1])
    for target, number, (top, left, height, width) in zip(result, index.tolist(), boxes.tolist(), strict=True):
        crop = images[number, top : top + height, left : left + width].permute(2, 0, 1)[None]
        target.copy_(_resized(crop, size)[0].permute(1, 2, 0))
    return torch.where(flips[:, None, None, None], result.flip(2), result)


def whole_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images (n, H, W, c), each as a whole, as random crops are; those of the size are returned as they are."""
    if tuple(images.shape[1:3]) == size:
        return images
    boxes = torch.tensor([0, 0, *images.shape[1:3]]).expand(len(images), 4)
    return resized_crops(images, torch.arange(len(images)), boxes, torch.zeros(len(images), dtype=torch.bool), size)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a uint8 image (1, c, h, w); a GPU has no kernel for uint8, and takes floats, as torchvision does."""
    if image.shape[-2:] == size:
        return image
    if image.device.type == "cpu":
        return F.interpolate(image, size, mode="bilinear", antialias=True)
    return F.interpolate(image.float(), size, mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
