"""Statistics of the training images: mean and deviation of each channel, and how frequent each class is."""

import numpy as np
from numpy.typing import NDArray


def channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Computes exact mean and standard deviation per channel of uint8 images (n, h, w, c), on the scale 0 to 1."""
    values = np.arange(256)
    mean, std = [], []
    for channel in range(images.shape[-1]):
        histogram = np.bincount(images[..., channel].ravel(), minlength=256)
        centre = float((histogram * values).sum() / histogram.sum())
        variance = float((histogram * (values - centre) ** 2).sum() / histogram.sum())
        mean.append(centre / 255)
        # at least one grey level, so that a channel without contrast does not divide by 0
        std.append(max(variance**0.5, 1.0) / 255)
    return mean, std


def class_frequencies(labels: NDArray[np.int64], num_classes: int, balance: bool = False) -> list[float]:
    """Returns the part of each class in labels (n,), or in an epoch with `balance`, which shows each as often."""
    if balance:
        return [1 / num_classes] * num_classes
    frequencies: list[float] = (np.bincount(labels, minlength=num_classes) / len(labels)).tolist()
    return frequencies
