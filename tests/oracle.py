"""Receptive fields by brute force: change the image, see which units change.

It shares nothing with the package: no gradient, no arithmetic of windows; only the network is run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnets.receptive_field.fields import Axis
from cifar_resnets.receptive_field.tracer import trace

AXES = ("height", "width")


class Fn(nn.Module):
    """A network in one function, with its modules by name."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Any:
        return self.function(self, images)


def make_positive(network: nn.Module) -> nn.Module:
    """Weights between 0.5 and 1.5, so that no path cancels another."""
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def followed_axis(network: nn.Module, size: tuple[int, int], axis: int, channels: int = 4) -> Axis:
    """What the package says of the network's result along an axis (0: height, 1: width)."""
    tracer, _ = trace(nn.Sequential(network), (channels, *size))
    return dict(tracer.outputs)["0"].axes[AXES[axis]]


def seen_pixels(network: nn.Module, size: tuple[int, int], axis: int, channels: int = 4) -> Tensor:
    """Which units of the result (n, c, h', w') along an axis change with which row or column: (units, pixels)."""
    length = size[axis]
    image = torch.rand(1, channels, *size) + 0.5
    images = image.repeat(length, 1, 1, 1)
    for pixel in range(length):
        images.select(0, pixel).select(axis + 1, pixel).add_(1e7)
    with torch.no_grad():
        before, after = network(image), network(images)
    # the order of a sum, and so its rounding, depends on the number of images
    changed = ((after - before).abs() > 1e-4 * before.abs()).movedim(axis + 2, 1)  # images, units, ...
    return changed.flatten(2).any(2).T


def check_axis(network: nn.Module, size: tuple[int, int], axis: int, margin: int, channels: int = 4) -> int:
    """Compares theory and brute force for every unit whose field lies so many pixels away from the border.

    Returns:
        The number of units compared.
    """
    theory, seen = followed_axis(network, size, axis, channels), seen_pixels(network, size, axis, channels)
    assert theory.size == len(seen)
    compared = 0
    for unit in range(len(seen)):
        pixels = seen[unit].nonzero().flatten().tolist()
        field = theory.at(unit)
        if margin <= field.low and field.high < size[axis] - margin:
            assert (field.low, field.high) == (pixels[0], pixels[-1]), f"unit {unit}"
            compared += 1
    return compared
