"""Statistics of the training images: mean and deviation of each channel, and how frequent each class is."""

import functools
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.errors import ConfigurationError, require

_require = functools.partial(require, "data")


def check_statistics(mean: list[float] | Literal["pretrained"] | None, std: list[float] | None) -> None:
    """Checks a mean and a standard deviation per channel; raises ConfigurationError for values out of range."""
    if mean == "pretrained":
        _require(std is None, "std", std, "null with data.mean pretrained, which stands for both")
        return
    _require((mean is None) == (std is None), "mean, std", (mean, std), "both or neither")
    _require(mean is None or all(0 <= v <= 1 for v in mean), "mean", mean, "numbers from 0 to 1")
    _require(std is None or all(0 < v <= 1 for v in std), "std", std, "numbers above 0, at most 1")
    for name, values in (("mean", mean), ("std", std)):
        _require(values is None or len(values) == 3, name, values, "three numbers: red, green, blue")


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
