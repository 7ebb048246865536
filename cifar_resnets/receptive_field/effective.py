"""The effective receptive field: which pixels of real images really matter to a unit, and a figure beside the theory.

Source: Luo, Li, Urtasun and Zemel (2016), "Understanding the effective receptive field in deep convolutional neural
networks", section 3: the gradient of a unit in the centre with respect to the image, its magnitude averaged over a
batch. Departure: the pixel with the largest gradient takes the place of the centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features
from cifar_resnets.receptive_field.tracer import name_of, trace
from cifar_resnets.support.sandbox import like_network, sandboxed
from cifar_resnets.support.tensor_layout import stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["effective_field", "effective_size", "follow_layers", "plot_fields", "stage_names"]

THRESHOLD = 1 - 0.9545  # of the largest gradient, from which on a pixel counts


def effective_field(module: nn.Module, images: Tensor, layer: str) -> Tensor:
    """Measures how much each pixel influences the unit in the centre of a layer.

    Args:
        module: a network; it is not changed.
        images: normalised images (n, c, h, w), on its device.
        layer: name of one of its modules.

    Returns:
        Mean magnitude of the gradient (h, w), scaled to a maximum of 1, on the CPU.

    Raises:
        ConfigurationError: when there is no such layer, or its output is no tensor of features (n, c, h', w').
    """
    with sandboxed(module, images):
        images = like_network(module, images).requires_grad_()
        with _output_of(module, layer) as outputs:
            module(images)
        if not outputs or not isinstance(outputs[-1], Tensor) or outputs[-1].ndim != 4:
            raise ConfigurationError(f"layers: {layer} returns no features of height and width, give another one")
        output = outputs[-1]
        centre = output[:, :, output.shape[2] // 2, output.shape[3] // 2]
        (gradient,) = torch.autograd.grad(centre.float().sum(), images)
    field = gradient.float().abs().mean(dim=(0, 1)).cpu()
    return field / field.max().clamp(min=torch.finfo().tiny)


def effective_size(field: Tensor) -> float:
    """Returns the side in pixels of a square with the area of the pixels of a field (h, w) above THRESHOLD."""
    return math.sqrt(int((field > THRESHOLD * field.max()).sum()))


def stage_names(module: nn.Module) -> list[str]:
    """The modules that a figure shows if none are named: the network's stages."""
    return list(stages(module)) or [name for name, child in module.named_children() if isinstance(child, nn.Sequential)]


def follow_layers(module: nn.Module, size: Sequence[int], layers: Sequence[str] | None = None) -> dict[str, Features]:
    """Returns the theoretical fields of some layers.

    Args:
        module: a network.
        size: channels, height and width of an image.
        layers: names of modules that return features; the stages if not given.

    Raises:
        ConfigurationError: when there is no such layer, or the network cannot be followed.
    """
    outputs = dict(trace(module, size)[0].outputs)
    names = list(layers or stage_names(module))
    if unknown := [name for name in names if name not in outputs]:
        raise ConfigurationError(f"layers: {name_of(module)} has no layer {', '.join(unknown)} that runs")
    if not names:
        raise ConfigurationError(f"layers: {name_of(module)} does not say which its stages are, name some layers")
    return {name: outputs[name] for name in names}


def plot_fields(module: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> Figure:
    """Draws the theoretical field of each layer's central unit over an image, and the effective one below.

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
    picture = _picture(images[0])
    for column, (name, features) in enumerate(followed.items()):
        field = effective_field(module, images, name)
        _show(axes[0][column], picture, features, f"{name}\n{_size(features, picture)}")
        _show(axes[1][column], field, features, f"effective: {effective_size(field):.0f} pixels")
    return figure


@contextmanager
def _output_of(module: nn.Module, layer: str) -> Iterator[list[Any]]:
    outputs: list[Any] = []
    try:
        handle = module.get_submodule(layer).register_forward_hook(lambda *args: outputs.append(args[2]))
    except AttributeError as error:
        raise ConfigurationError(f"layers: the network has no layer {layer}, see the table") from error
    try:
        yield outputs
    finally:
        handle.remove()


def _picture(image: Tensor) -> Tensor:
    """A normalised image (c, h, w) as RGB or grey values (h, w, 3) from 0 to 1."""
    image = image.detach().float().cpu()
    low, high = image.amin(), image.amax()
    rgb = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return ((rgb - low) / (high - low).clamp(min=1e-6)).movedim(0, -1)


def _size(features: Features, picture: Tensor) -> str:
    height, width = (features.axes[name].receptive_field for name in (HEIGHT, WIDTH))
    if math.isinf(height):
        return "theory: the whole image"
    beyond = ", beyond the image" if height > picture.shape[0] or width > picture.shape[1] else ""
    return f"theory: {height:g}{'' if height == width else f'x{width:g}'} pixels{beyond}"


def _show(axes: Axes, picture: Tensor, features: Features, title: str) -> None:
    from matplotlib.patches import Rectangle

    axes.imshow(picture.numpy(), interpolation="nearest", cmap="magma", vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    (top, bottom), (left, right) = (
        _visible(features, name, side) for name, side in zip((HEIGHT, WIDTH), picture.shape[:2], strict=True)
    )
    box = Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, color="tab:cyan", lw=2)
    axes.add_patch(box)


def _visible(features: Features, name: str, side: int) -> tuple[float, float]:
    """First and last pixel of the central unit's field, as far as they lie in the image."""
    axis = features.axes[name]
    field = axis.at(axis.size // 2)
    return max(0, field.low), min(side - 1, field.high)
