"""Training images in memory, and the augmented batches that are taken of them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cifar_resnets.data.augment import (
    Augmentation,
    Draws,
    augment,
    crop_and_flip,
    cutout,
    normalize,
    pad,
    with_mirrored,
)
from cifar_resnets.data.random_crops import resized_crops

LARGE = 2**29  # bytes of images, from which on they are padded a batch at a time


class StoredImages:
    """Stores images as their augmentation needs them.

    For a crop padded by p, an image takes (h + 2p) * (w + 2p) * c bytes; on a CPU with flips twice that, because its
    mirror image is stored, too. Images of half a gigabyte and more take h * w * c bytes each, and are padded a batch at
    a time, which gives the same bits; so do those of which random resized crops are taken.

    Args:
        images: uint8 (n, h, w, c) on the training device.
        augmentation: applied to each image.
        crop_size: height and width of random resized crops; crops of padded images if not given.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation, crop_size: tuple[int, int] | None = None) -> None:
        on_gpu = images.device.type == "cuda"
        self.size = crop_size or (images.shape[1], images.shape[2])
        self.device = images.device
        self.function: Callable[..., Tensor] = Compiled(augment) if on_gpu else augment_in_steps
        self._augmentation = augmentation
        self._mirrors = augmentation.flip and not on_gpu
        self._is_padded = crop_size is None and images.nbytes < LARGE
        self._images = self._pad(images) if self._is_padded else images.contiguous()
        if crop_size is None and not self._is_padded:
            self._pad(images[:1])  # raises an error for a padding that does not fit, before the first batch

    def batch(self, index: Tensor, draws: Draws, mean: Tensor, std: Tensor) -> Tensor:
        """Returns augmented, normalised images, float32 (n, h, w, c).

        Args:
            index: (n,) indices of images.
            draws: n draws, with boxes if random resized crops are taken.
            mean: (c,) on the scale 0 to 255.
            std: (c,) on the scale 0 to 255.
        """
        hole_size = self._augmentation.cutout_size if self._augmentation.cutout_holes else 0
        if draws.boxes is not None:
            crops = resized_crops(self._images, index, draws.boxes, draws.flips, self.size)
            return _normalize_and_cut(crops, draws, mean, std, hole_size)
        padded = self._images
        if not self._is_padded:
            padded, index = self._pad(padded.index_select(0, index)), torch.arange(len(index), device=self.device)
        return self.function(padded, index, draws, self.size, mean, std, hole_size)

    def _pad(self, images: Tensor) -> Tensor:
        return pad(with_mirrored(images) if self._mirrors else images, self._augmentation)


def augment_in_steps(
    padded: Tensor, index: Tensor, draws: Draws, size: tuple[int, int], mean: Tensor, std: Tensor, hole_size: int
) -> Tensor:
    """Does what `augment` does, faster on a CPU, with images that are stored with their mirror images."""
    return _normalize_and_cut(crop_and_flip(padded, index, draws, size), draws, mean, std, hole_size)


def _normalize_and_cut(images: Tensor, draws: Draws, mean: Tensor, std: Tensor, hole_size: int) -> Tensor:
    normalized = normalize(images, mean, std)
    return cutout(normalized, draws.holes, hole_size) if hole_size else normalized


class Compiled:
    """Compiles a function with `torch.compile`; without a compiler, warns and calls the function as it is."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._plain = function
        self._function: Callable[..., Tensor] = torch.compile(function)
        self._was_called = False

    def __call__(self, *args: Any) -> Tensor:
        """Calls the function, which is compiled in the first call."""
        if not self._was_called:
            self._was_called = True
            try:
                self._function(*args)
            except (RuntimeError, OSError) as error:  # for example no triton, no C compiler, no folder for its cache
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = str(error).partition("\n")[0]
                warnings.warn(f"{self._plain.__name__} is not compiled, and so takes longer: {reason}", stacklevel=2)
                self._function = self._plain
        return self._function(*args)
