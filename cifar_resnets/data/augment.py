"""Augmentation of a whole batch at once, with separate random numbers for each image.

All functions are pure. The random numbers of an epoch are drawn in advance, so that the augmentation of an image
depends on the epoch and on the image's position in it alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnets.errors import ConfigurationError


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    Source: crop and flip as in He et al. (2015), "Deep Residual Learning for Image Recognition", section 4.2; cutout as
    in DeVries and Taylor (2017), "Improved Regularization of Convolutional Neural Networks with Cutout", section 3;
    mixup as in Zhang et al. (2018); CutMix as in Yun et al. (2019); the alternating flip as in Jordan (2024), "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6; for random resized crops see `random_crops`.

    Args:
        crop_padding: pixels added on each side before a random crop to the original size; 0 for no crop. Photographs
            that are not squashed (`data.resize`) have random resized crops instead.
        padding_mode: "constant" pads with black, as torchvision does; "reflect" mirrors the border.
        flip: mirror left and right with probability one half.
        alternating_flip: mirror each image in every other epoch instead, starting in an epoch drawn for each image.
        cutout_size: side in pixels of a square hole, filled with the mean; 0 for none. It may extend over the border.
        cutout_holes: number of holes per image.
        mixup_alpha: parameter of mixup's beta distribution, drawn once per batch; 0 for no mixup.
        cutmix_alpha: the same for CutMix; if both are given, one of them is drawn for each batch.
        crop_scale: smallest and largest part of the area that a random resized crop takes; 0.08 and 1 if not given.
        crop_ratio: smallest and largest ratio of its width to its height; 3/4 and 4/3 if not given.

    Raises:
        ConfigurationError: for a range that is empty, a negative number, an unknown padding mode, or an alternating
            flip without a flip.
    """

    crop_padding: int = 4
    padding_mode: Literal["constant", "reflect"] = "constant"
    flip: bool = True
    alternating_flip: bool = False
    cutout_size: int = 0
    cutout_holes: int = 1
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    crop_scale: list[float] | None = None
    crop_ratio: list[float] | None = None

    def __post_init__(self) -> None:
        for name, largest in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            ends = getattr(self, name)
            if ends is not None and not (len(ends) == 2 and 0 < ends[0] <= ends[1] <= largest and ends[1] < math.inf):
                allowed = (
                    f"two numbers above 0{' and at most 1' if name == 'crop_scale' else ''}, the smaller one first"
                )
                raise ConfigurationError(f"augment.{name}: {ends} is not allowed, give {allowed}")
        for name in ("crop_padding", "cutout_size", "cutout_holes", "mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"augment.{name}: {getattr(self, name)} is not allowed, give 0 or more")
        if self.padding_mode not in ("constant", "reflect"):
            raise ConfigurationError(f"augment.padding_mode: {self.padding_mode!r}, allowed are constant and reflect")
        if self.alternating_flip and not self.flip:
            raise ConfigurationError("augment.alternating_flip: true needs augment.flip: true")


@dataclass(frozen=True)
class Draws:
    """Random numbers for n images: corners (n, 2) and holes (n, num_holes, 2) as (row, column), flips (n,) of bool.

    Boxes (n, 4), if there are any, are top, left, height and width of random resized crops, on the CPU.
    """

    corners: Tensor
    flips: Tensor
    holes: Tensor
    boxes: Tensor | None = None

    def __getitem__(self, index: slice) -> Draws:
        boxes = None if self.boxes is None else self.boxes[index]
        return Draws(self.corners[index], self.flips[index], self.holes[index], boxes)

    def to(self, device: torch.device) -> Draws:
        """Copies the numbers to a device, but for the boxes: each crop is a call of its own, with Python's numbers."""
        return Draws(self.corners.to(device), self.flips.to(device), self.holes.to(device), self.boxes)


def draw(augmentation: Augmentation, num_images: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draws the random numbers for `num_images` images of `size` (height, width) in pixels.

    Numbers of every kind are always drawn, so that switching one augmentation off does not change the others. They are
    drawn on the generator's device; CPU and GPU draw different numbers.
    """
    on: dict[str, Any] = {"generator": generator, "device": generator.device}
    span = 2 * augmentation.crop_padding + 1
    corners = torch.randint(span, (num_images, 2), **on)
    flips = torch.randint(2, (num_images,), **on).bool() & augmentation.flip
    holes = torch.rand(num_images, augmentation.cutout_holes, 2, dtype=torch.float64, **on)
    centres = torch.stack([holes[..., 0] * size[0], holes[..., 1] * size[1]], dim=-1).long()
    return Draws(corners, flips, centres)


def pad(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Pads uint8 images (n, h, w, c) to (n, h + 2p, w + 2p, c), contiguous.

    Raises:
        ConfigurationError: when a crop could contain nothing but padding, or the image is too small to be reflected.
    """
    p, (height, width) = augmentation.crop_padding, images.shape[1:3]
    if p == 0:
        return images.contiguous()
    if p >= min(height, width):
        raise ConfigurationError(
            f"data.augment.crop_padding: {p} is not allowed for images of {height}x{width} pixels, give less than "
            f"{min(height, width)}"
        )
    if augmentation.padding_mode == "constant":
        return F.pad(images, (0, 0, p, p, p, p)).contiguous()
    rows, columns = _reflected(height, p, images.device), _reflected(width, p, images.device)
    return images[:, rows][:, :, columns].contiguous()


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    positions = torch.arange(-padding, size + padding, device=device)
    return (size - 1) - (positions.abs() - (size - 1)).abs()


def with_mirrored(images: Tensor) -> Tensor:
    """Appends the mirror image of each image: (n, h, w, c) -> (2n, h, w, c)."""
    return torch.cat([images, images.flip(2)])


def crop_and_flip(padded: Tensor, index: Tensor, draws: Draws, size: tuple[int, int]) -> Tensor:
    """Selects images by index, crops each at its corner and mirrors it if its flip is true.

    This is one gather of rows of pixels that may begin at any pixel, without a loop or a device synchronisation.

    Args:
        padded: uint8 (2N, H, W, c), contiguous: images and their mirror images, see `with_mirrored`; or (N, H, W, c)
            if no flip is true.
        index: (n,) indices of the N images.
        draws: n draws.
        size: height and width of the result.

    Returns:
        uint8 (n, h, w, c), contiguous.
    """
    num_padded, full_height, full_width, channels = padded.shape
    height, width = size
    # every run of w pixels in memory, overlapping; no selected run extends over the end of a row
    num_runs = num_padded * full_height * full_width - width + 1
    runs = padded.as_strided((num_runs, width * channels), (channels, 1))
    rows = draws.corners[:, :1] + torch.arange(height, device=padded.device)  # (n, h)
    left, right = draws.corners[:, 1], full_width - width - draws.corners[:, 1]
    columns = torch.where(draws.flips, right, left)  # a mirror image is cropped from the other side
    which = index + draws.flips * (num_padded // 2)
    starts = (which[:, None] * full_height + rows) * full_width + columns[:, None]
    return runs.index_select(0, starts.flatten()).view(-1, height, width, channels)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Maps uint8 images (n, h, w, c) to float32 (pixel - mean) / std, with mean and std (c,) on the scale 0 to 255."""
    _, height, width, channels = images.shape
    # rows of w * c numbers: broadcasting over the 3 channels takes seventy times as long on a CPU
    rows = images.float().view(-1, height, width * channels)
    return rows.sub_(mean.repeat(width)).div_(std.repeat(width)).view(-1, height, width, channels)


def cutout(images: Tensor, holes: Tensor, hole_size: int) -> Tensor:
    """Fills square holes of normalised images with 0, which is the mean, in place.

    Args:
        images: (n, h, w, c), contiguous.
        holes: (n, num_holes, 2) centres as (row, column) inside the image; a hole may extend over the border.
        hole_size: side in pixels; of an even side, the larger half lies before the centre.
    """
    num_images, height, width, channels = images.shape
    offsets = torch.arange(hole_size, device=images.device) - hole_size // 2
    # pixels beyond the border are clamped to it; the border is in the hole anyway, as the centre is in the image
    rows = (holes[..., 0, None] + offsets).clamp_(0, height - 1)  # (n, num_holes, hole_size)
    columns = (holes[..., 1, None] + offsets).clamp_(0, width - 1)
    rows += torch.arange(num_images, device=images.device)[:, None, None] * height
    pixels = (rows[..., :, None] * width + columns[..., None, :]).flatten()
    images.view(-1, channels).index_fill_(0, pixels, 0.0)
    return images


def augment(
    padded: Tensor, index: Tensor, draws: Draws, size: tuple[int, int], mean: Tensor, std: Tensor, hole_size: int
) -> Tensor:
    """Crops, flips, normalises and cuts out, elementwise, so that a compiler can fuse it into one kernel.

    The result equals that of `crop_and_flip`, `normalize` and `cutout` to the last bit; those are faster on a CPU.

    Args:
        padded: uint8 (N, H, W, c), contiguous, without mirror images.
        index: (n,) indices of the N images.
        draws: n draws.
        size: height and width of the result.
        mean: (c,) on the scale 0 to 255.
        std: (c,) on the scale 0 to 255.
        hole_size: side of the holes in pixels; 0 for none.

    Returns:
        float32 (n, h, w, c), contiguous.
    """
    _, full_height, full_width, channels = padded.shape
    rows, columns = (torch.arange(length, device=padded.device) for length in size)
    from_rows = index[:, None] * full_height + draws.corners[:, :1] + rows  # (n, h)
    mirrored = torch.where(draws.flips[:, None], size[1] - 1 - columns, columns)
    from_columns = draws.corners[:, 1:] + mirrored  # (n, w)
    pixels = padded.view(-1, channels)[from_rows[:, :, None] * full_width + from_columns[:, None, :]]
    images = (pixels.float() - mean) / std
    if hole_size == 0:
        return images
    starts = draws.holes - hole_size // 2  # (n, num_holes, 2)
    in_rows = (rows >= starts[..., :1]) & (rows < starts[..., :1] + hole_size)  # (n, num_holes, h)
    in_columns = (columns >= starts[..., 1:]) & (columns < starts[..., 1:] + hole_size)
    covered = (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1)  # (n, h, w)
    return torch.where(covered[..., None], 0.0, images)
