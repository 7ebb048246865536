"""Mean and standard deviation per channel, with which images are normalised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.errors import ConfigurationError


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


def pretrained_statistics(module: Any) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation, on the scale 0 to 1, that the weights of a network were trained with.

    Args:
        module: a LightningModule with a network of timm's registry, which describes its weights.

    Raises:
        ConfigurationError: when it does not.
    """
    described = getattr(getattr(module, "network", None), "pretrained_cfg", None) or {}
    if not {"mean", "std"} <= described.keys():
        what = "the network does not say what its weights were trained with"
        raise ConfigurationError(f"data.mean: pretrained: {what}, give numbers, or leave it out")
    mean, std = ([float(value) for value in described[name]] for name in ("mean", "std"))
    return mean, std
