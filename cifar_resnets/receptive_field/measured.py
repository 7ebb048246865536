"""Measured receptive fields: the pixels that have a gradient with respect to one unit.

This verifies `theory.py` without its arithmetic: the network is run, and PyTorch computes the gradient from a unit to
the image. So that only the paths matter, activations and norms are skipped, all weights are positive, max pooling sums
its window, and the image is long enough to contain the field. Between layers, gradients are set to 0 or 1, because
those at the border of a deep network's field are too small to be represented.
"""

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
from cifar_resnets.receptive_field.linearize import Linearized
from cifar_resnets.receptive_field.tracer import InputSize, Tracer, trace
from cifar_resnets.support.sandbox import evaluating, exchanged

# Each layer takes a backward pass. If all of them would take more multiply-adds than these, a few minutes, a part of
# the layers is measured, evenly spaced.
BUDGET = 5e12
MIN_MEASURED = 20


@dataclass(frozen=True)
class Measurement:
    """The field of a unit of one layer. Pairs are height and width.

    Args:
        layer: name of the module.
        theory: first and last pixel in theory; infinite for the whole image.
        measured: first and last pixel with a gradient.
        size: pixels of the image on which the field was measured.
        left_over: largest number of pixels at the image's end that strides may skip.
    """

    layer: str
    theory: tuple[tuple[float, float], tuple[float, float]]
    measured: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int]
    left_over: tuple[int, int] = (0, 0)

    @property
    def field(self) -> tuple[int, int]:
        """Number of pixels from the first to the last with a gradient."""
        (top, bottom), (left, right) = self.measured
        return bottom - top + 1, right - left + 1

    @property
    def agrees(self) -> bool:
        """Whether theory, clipped to the image, and measurement have the same ends along both axes."""
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
        input_size: see `summarize`; fields are measured on an image that is large enough for them.

    Returns:
        A measurement for each layer whose units have a place in the image, or see the whole image.

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
    tracer = _trace_strip(module, input_size, name)
    followed = dict(tracer.outputs)  # the last call of a module that is called several times
    cost = sum(record.operation.macs for record in tracer.records)
    count = max(MIN_MEASURED, int(BUDGET / max(1, cost)))
    chosen = _spread([layer for layer in _rows(tracer, followed, name) if not _is_skipped(module, layer)], count)
    found = {}
    with torch.inference_mode(False), torch.enable_grad():
        images = torch.ones(1, *tracer.size, requires_grad=True)
        outputs = _run_linearized(module, images, set(chosen))
        for layer in (layer for layer in chosen if layer in outputs):
            found[layer] = _measure(images, outputs[layer], followed[layer], name)
    return found


def _trace_strip(module: nn.Module, input_size: InputSize, name: str) -> Tracer:
    """Traces an image that contains the field of one unit of each layer, if the network takes images of any size."""
    tracer, _ = trace(module, input_size)
    channels, height, width = tracer.size
    fields = [features.axes[name] for _, features in tracer.outputs if name in features.axes]
    jump = max(axis.jump for axis in fields)
    local = [axis for axis in fields if axis.size > 1 and not axis.sees_all] or fields
    # a multiple of the largest jump, for networks that halve often, plus the remainder of the original side
    thin, side = max(16, math.ceil(jump)), height if name == HEIGHT else width
    long = side % thin + thin * math.ceil((max(_end(axis) for axis in local) + 2 * jump) / thin)
    thins = [thin, 2 * thin, 4 * thin, width if name == HEIGHT else height]
    sizes = [(long, each) if name == HEIGHT else (each, long) for each in thins]
    for size in sizes:
        with contextlib.suppress(ConfigurationError):  # too thin for its windows, or of a fixed size
            return trace(module, (channels, *size))[0]
    return tracer


def _inside(axis: Axis) -> int:
    """Returns the first unit whose field begins inside the image."""
    return next(unit for unit in range(axis.size + 10**6) if axis.at(unit).low >= 0)


def _end(axis: Axis) -> float:
    return 0 if axis.sees_all else axis.at(_inside(axis)).high + 1


def _rows(tracer: Tracer, followed: Mapping[str, Features], name: str) -> list[str]:
    """Returns the layers of the table whose row is the output of a module."""
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
    """Returns the dimension of a tensor that holds the axis and nothing else; None if there is none."""
    return next((i for i, parts in enumerate(features.layout) if [part.axis for part in parts] == [name]), None)


def _is_skipped(module: nn.Module, layer: str) -> bool:
    """Returns whether a module is an activation, a batch norm or a dropout, which do not change the field."""
    name = type(module.get_submodule(layer)).__module__
    return name.startswith(("torch.nn.modules.activation", "torch.nn.modules.batchnorm", "torch.nn.modules.dropout"))


def _spread(layers: Sequence[str], count: int) -> list[str]:
    """Selects up to `count` layers, evenly spaced, the first and the last among them."""
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


def _run_linearized(module: nn.Module, images: Tensor, layers: set[str]) -> dict[str, Tensor]:
    """Returns the outputs of some layers of the network with positive weights and without nonlinearities."""
    outputs: dict[str, Tensor] = {}
    with evaluating(module), _recording(module, layers, outputs):
        torch.manual_seed(0)
        try:
            with exchanged(module, _positive), Linearized():
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
def _recording(module: nn.Module, layers: set[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Records the outputs of some layers, and replaces values and gradients between all layers by those of `_Even`."""

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
    """Replaces all values by the same one from 0.25 to 0.75, and gradients by 0 or 1."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        # drawn in each call, so that differences such as 1 - gate do not cancel
        return torch.full_like(tensor, 0.25 + 0.5 * float(torch.rand(())))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.ne(0).to(gradient.dtype)
