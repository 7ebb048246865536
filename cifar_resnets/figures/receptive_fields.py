"""Draws receptive fields over an image: the theoretical ones of some layers, and below them the effective ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_resnets.evaluation.mistakes import to_pixels
from cifar_resnets.receptive_field.effective import effective_field, effective_size, follow_layers
from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features
from cifar_resnets.receptive_field.table import pair_text
from cifar_resnets.receptive_field.tracer import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_fields(module: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> Figure:
    """Draws the fields of the unit in the centre of each layer.

    Args:
        module: a network.
        images: normalised images (n, c, h, w), on its device; the first is shown.
        layers: names of modules that return features; the stages if not given.

    Raises:
        ConfigurationError: when a layer cannot be shown.
    """
    from matplotlib.figure import Figure  # half a second of import

    followed = follow_layers(module, images.shape[1:], layers)
    figure = Figure(figsize=(2.4 * len(followed) + 0.2, 5.6), layout="constrained", dpi=120)
    figure.suptitle(f"Receptive fields of {name_of(module)}", fontsize=11)
    axes = figure.subplots(2, len(followed), squeeze=False)
    [picture] = to_pixels(images[:1].detach().cpu())
    for column, (name, features) in enumerate(followed.items()):
        field = effective_field(module, images, name)
        _show(axes[0][column], picture, features, f"{name}\n{_theory(features, picture.shape)}")
        _show(axes[1][column], field.numpy(), features, f"effective: {effective_size(field):.0f} pixels")
    return figure


def _theory(features: Features, size: Sequence[int]) -> str:
    fields = [features.axes[name].receptive_field for name in (HEIGHT, WIDTH)]
    if math.isinf(fields[0]):
        return "theory: the whole image"
    beyond = any(field > side for field, side in zip(fields, size, strict=False))
    return f"theory: {pair_text(fields)} pixels{', beyond the image' if beyond else ''}"


def _show(axes: Axes, picture: NDArray[np.generic], features: Features, title: str) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(picture, interpolation="nearest", cmap="magma", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    (top, height), (left, width) = (
        _visible(features, name, side) for name, side in zip((HEIGHT, WIDTH), picture.shape, strict=False)
    )
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color="tab:cyan", lw=2))


def _visible(features: Features, name: str, side: int) -> tuple[float, float]:
    """Returns the first pixel of the central unit's field in the image, and the number of its pixels there."""
    axis = features.axes[name]
    field = axis.at(axis.size // 2)
    first = max(0, field.low)
    return first, min(side - 1, field.high) - first + 1
