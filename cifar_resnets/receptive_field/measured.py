"""The receptive field as measured: the pixels that have a gradient with respect to one unit.

This is the proof of the table in `receptive_field`, and shares none of its arithmetic: the network is run, and PyTorch
goes back from a unit to the image. So that nothing but the paths counts, activations and norms are made transparent,
all weights are positive, max pooling adds up its window, and the image is long enough not to clip the field. Between
layers, gradients are set to 0 or 1, since those at the rim of a deep network's field are too small to be represented.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features
from cifar_resnets.receptive_field.fields import Axis
from cifar_resnets.receptive_field.linearize import Transparent
from cifar_resnets.receptive_field.tracer import InputSize, Tracer, trace
from cifar_resnets.support.sandbox import evaluating, exchanged

__all__ = ["Measurement", "verify"]

# Each layer takes a pass back through all before it. Where all together would take longer than so many multiply-adds,
# a few minutes, fewer layers are measured, evenly spaced.
BUDGET = 5e12
MIN_MEASURED = 20


@dataclass(frozen=True)
class Measurement:
    """The field of a unit of one layer.

    Args:
        layer: name of the module.
        theory: first and last pixel by `receptive_field`, for height and width; infinite for the whole image.
        measured: the same by gradient.
        size: pixels of the image on which it was measured, for height and width.
        left_over: pixels at the image's end that strides may pass over, for height and width.
    """

    layer: str
    theory: tuple[tuple[float, float], tuple[float, float]]
    measured: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int]
    left_over: tuple[int, int] = (0, 0)

    @property
    def field(self) -> tuple[int, int]:
        """Pixels from the first to the last that has a gradient, for height and width."""
        (top, bottom), (left, right) = self.measured
        return bottom - top + 1, right - left + 1

    @property
    def agrees(self) -> bool:
        """Whether both ends are the same along both axes; the image's border where the theory reaches beyond it."""
        axes = zip(self.theory, self.measured, self.size, self.left_over, strict=True)
        return all(_agree(*axis) for axis in axes)


def _agree(theory: tuple[float, float], measured: tuple[int, int], size: int, left_over: int) -> bool:
    (low, high), (first, last) = theory, measured
    end = last == high if high < size else size - left_over <= last + 1 <= size
    return first == max(0, low) and end


def verify(module: nn.Module, input_size: InputSize = 32) -> dict[str, Measurement]:
    """Measures the fields of a network's layers.

    Args:
        module: any network that takes a batch of images (n, c, h, w). It is not changed.
        input_size: see `summarize`; what is measured on is as long as the fields demand.

    Returns:
        For each layer whose units can be told apart by their place in the image, or see all of it, a measurement.

    Raises:
        ConfigurationError: when the network takes no images of other sizes.
    """
    along = {name: _along(module, input_size, name) for name in (HEIGHT, WIDTH)}
    layers = [layer for layer in along[HEIGHT] if layer in along[WIDTH]]
    return {layer: _both(layer, along[HEIGHT][layer], along[WIDTH][layer]) for layer in layers}


@dataclass(frozen=True)
class _OneAxis:
    theory: tuple[float, float]
    measured: tuple[int, int]
    size: int
    left_over: int


def _both(layer: str, height: _OneAxis, width: _OneAxis) -> Measurement:
    return Measurement(
        layer,
        (height.theory, width.theory),
        (height.measured, width.measured),
        (height.size, width.size),
        (height.left_over, width.left_over),
    )


def _along(module: nn.Module, input_size: InputSize, name: str) -> dict[str, _OneAxis]:
    """Measures along one axis, on an image that is long in its direction and thin in the other."""
    tracer = _on_a_strip(module, input_size, name)
    followed = dict(tracer.outputs)  # of a module that is called several times, the last call
    cost = sum(record.step.macs for record in tracer.records)
    count = max(MIN_MEASURED, int(BUDGET / max(1, cost)))
    chosen = _spread([layer for layer in _rows(tracer, followed, name) if _acts(module, layer)], count)
    found = {}
    with torch.inference_mode(False), torch.enable_grad():
        images = torch.ones(1, *tracer.size, requires_grad=True)
        outputs = _run_transparent(module, images, set(chosen))
        for layer in (layer for layer in chosen if layer in outputs):
            found[layer] = _measure(images, outputs[layer], followed[layer], name)
    return found


def _on_a_strip(module: nn.Module, input_size: InputSize, name: str) -> Tracer:
    """Follows an image on which one unit of each layer sees nothing of the border, if the network takes any size."""
    tracer, _ = trace(module, input_size)
    channels, height, width = tracer.size
    fields = [features.axes[name] for _, features in tracer.outputs if name in features.axes]
    apart = max(axis.jump for axis in fields)
    moving = [axis for axis in fields if axis.size > 1 and not axis.sees_all] or fields
    # whole multiples for networks that halve often, and the remainder that the network's strides go up in
    thin, side = max(16, math.ceil(apart)), height if name == HEIGHT else width
    long = side % thin + thin * math.ceil((max(_end(axis) for axis in moving) + 2 * apart) / thin)
    thins = [thin, 2 * thin, 4 * thin, width if name == HEIGHT else height]
    sizes = [(long, each) if name == HEIGHT else (each, long) for each in thins]
    for size in sizes:
        with contextlib.suppress(ConfigurationError):  # too thin for its windows, or of a fixed size
            return trace(module, (channels, *size))[0]
    return tracer


def _inside(axis: Axis) -> int:
    """The first unit whose field begins inside the image."""
    return next(unit for unit in range(axis.size + 10**6) if axis.at(unit).low >= 0)


def _end(axis: Axis) -> float:
    return 0 if axis.sees_all else axis.at(_inside(axis)).high + 1


def _rows(tracer: Tracer, followed: Mapping[str, Features], name: str) -> list[str]:
    """The layers of the table that are the output of a module."""
    rows = {record.layer: record.output.axes.get(name) for record in tracer.records}
    return [
        layer
        for layer, features in followed.items()
        if _can_measure(features, name) and rows.get(layer) == features.axes[name]
    ]


def _can_measure(features: Features, name: str) -> bool:
    if name not in features.axes or features.is_fixed(name) or features.axes[name].sees_all:
        return name in features.axes
    return _dimension(features, name) is not None and _inside(features.axes[name]) < features.axes[name].size


def _dimension(features: Features, name: str) -> int | None:
    """The dimension of a tensor that holds the axis and nothing else."""
    return next((i for i, parts in enumerate(features.layout) if [part.axis for part in parts] == [name]), None)


def _acts(module: nn.Module, layer: str) -> bool:
    """Whether a module is more than an activation or a norm, which are transparent anyway."""
    name = type(module.get_submodule(layer)).__module__
    return not name.startswith(
        ("torch.nn.modules.activation", "torch.nn.modules.batchnorm", "torch.nn.modules.dropout")
    )


def _spread(layers: Sequence[str], count: int) -> list[str]:
    """So many layers, the first and the last among them."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(index * (len(layers) - 1) / (count - 1))] for index in range(count)]


def _measure(images: Tensor, output: Tensor, features: Features, name: str) -> _OneAxis:
    axis = features.axes[name]
    dimension = _dimension(features, name)
    field, unit = axis.at(0), output
    if not (features.is_fixed(name) or axis.sees_all) and dimension is not None:
        place = _inside(axis)
        field, unit = axis.at(place), output.select(dimension, place)
    (gradient,) = torch.autograd.grad(unit.sum(), images, retain_graph=True)
    along = 2 if name == HEIGHT else 3
    seen = gradient.ne(0).movedim(along, 0).flatten(1).any(1).nonzero().flatten()
    first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (-1, -1)
    return _OneAxis((field.low, field.high), (first, last), images.shape[along], math.ceil(axis.jump) - 1)


def _run_transparent(module: nn.Module, images: Tensor, layers: set[str]) -> dict[str, Tensor]:
    """The outputs of some layers of the network with positive weights and without nonlinearities."""
    outputs: dict[str, Tensor] = {}
    with evaluating(module), _noting(module, layers, outputs):
        torch.manual_seed(0)
        try:
            with exchanged(module, _positive), Transparent():
                module(images)
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            height, width = images.shape[2:]
            raise ConfigurationError(
                f"--verify: the network cannot be run on an image of {height}x{width} pixels: {error}"
            ) from error
    return outputs


def _positive(tensor: Tensor) -> Tensor:
    return torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else tensor.detach().cpu().clone()


@contextlib.contextmanager
def _noting(module: nn.Module, layers: set[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Notes the outputs of some layers, and evens out values and gradients between all of them."""

    def hook(name: str) -> Any:
        def even(_: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return output
            output = _Even.apply(output)
            if name in layers:
                outputs[name] = output
            return output

        return even

    handles = [each.register_forward_hook(hook(name)) for name, each in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Even(torch.autograd.Function):
    """Values between 0.25 and 0.75, the same for all elements, and gradients of 0 or 1."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        # drawn anew each time, so that differences such as 1 - gate never cancel
        return torch.full_like(tensor, 0.25 + 0.5 * float(torch.rand(())))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.ne(0).to(gradient.dtype)
