"""The effective receptive field: which pixels of real images really matter to a unit.

Source: Luo, Li, Urtasun and Zemel (2016), "Understanding the effective receptive field in deep convolutional neural
networks", section 3: the gradient of a unit in the centre with respect to the image, its magnitude averaged over a
batch. Departure: the pixel with the largest gradient takes the place of the centre.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.features import Features
from cifar_resnets.receptive_field.tracer import name_of, trace
from cifar_resnets.support.sandbox import like_network, sandboxed

__all__ = ["effective_field", "effective_size", "follow_layers", "stage_names", "stages"]

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


def stages(network: nn.Module) -> dict[str, int]:
    """Returns names and numbers of channels of a timm network's stages."""
    info = getattr(network, "feature_info", None) or []
    entries = info if isinstance(info, list) else getattr(info, "info", [])
    return {entry["module"]: entry["num_chs"] for entry in entries if "module" in entry and "num_chs" in entry}


def stage_names(module: nn.Module) -> list[str]:
    """Returns the names of the network's stages, which are shown if no layers are named."""
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
