"""Scikit-learn's handwritten digits: 1,797 real images that come with a package, to try everything offline."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split

# a mirrored digit is no digit
DIGITS_AUGMENTATION = Augmentation(flip=False)


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8x8 pixels, enlarged to 32x32 RGB; every fifth image of a class is a test image.

    Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    the test part, as `sklearn.datasets.load_digits` ships it.

    Args:
        augment: augmentation of the training images; none if null.
        kwargs: see `ImageDataModule`.
    """

    def __init__(self, augment: Augmentation | None = DIGITS_AUGMENTATION, **kwargs: Any) -> None:
        super().__init__(augment=augment, **kwargs)

    def source_classes(self) -> Sequence[str]:
        """Returns the ten digits."""
        return [str(digit) for digit in range(10)]

    def count_images(self, split: Split, enough: int) -> int:
        """See `ImageDataModule.count_images`."""
        return len(self._chosen(split)[1])

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split; see `ImageDataModule.load`."""
        images, labels = _all_images()
        is_test = np.zeros(len(labels), dtype=bool)
        for digit in range(10):
            is_test[np.flatnonzero(labels == digit)[::5]] = True
        chosen = is_test if split == "test" else ~is_test
        return images[chosen], labels[chosen]


@cache  # a fit reads them three times
def _all_images() -> tuple[Images, Labels]:
    from sklearn.datasets import load_digits  # imports for a second, which other sources do not need

    digits = load_digits()
    return np.stack([_enlarged(image) for image in digits.images]), digits.target.astype(np.int64)


def _enlarged(image: np.ndarray[Any, np.dtype[np.float64]]) -> Images:
    """Converts an 8x8 image of 17 grey levels to 32x32 RGB."""
    grey = Image.fromarray((image * 255 / 16).round().astype(np.uint8))
    return np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB"))
