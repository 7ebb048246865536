"""An operation that was followed, and what the rules of all operations share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features, Part, merge_features, plain_layout
from cifar_resnets.receptive_field.fields import Axis

__all__ = [
    *("AXES", "Pair", "Rules", "Shape", "Step", "each", "elementwise", "features_in", "holds_units", "nothing_seen"),
    *("pair", "resampled", "windowed"),
]

AXES = (HEIGHT, WIDTH)

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """An operation that was followed.

    Args:
        output: features that it returns; several where it splits a tensor.
        kind: what it is to a reader: "conv", "pool", "linear", "norm", "merge", "move" (along the image) or "point"
            (elementwise); empty where elements are only arranged anew.
        kernel, stride, padding, dilation: height and width in units of the layer before.
        groups: of a convolution.
        channels: in and out, where the features do not say.
        macs: multiply-adds for a batch.
        note: what a reader should know.
    """

    output: Features | tuple[Features, ...]
    kind: str = ""
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    channels: Pair | None = None
    macs: int = 0
    note: str = ""


# Takes the operation's arguments by name, with Features in the place of tensors, and the shape of each result.
Rules = dict[str, Callable[[Mapping[str, Any], Any], Step]]


def features_in(value: Any) -> list[Features]:
    """All features in arguments, which may be nested."""
    if isinstance(value, Features):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [found for item in value for found in features_in(item)] if isinstance(value, (list, tuple)) else []


def nothing_seen(shape: Any) -> Features | tuple[Features, ...]:
    """The features of results that do not depend on the image."""
    if isinstance(shape, list):
        return tuple(Features(plain_layout(each)) for each in shape)
    return Features(plain_layout(shape))


def elementwise(arguments: Mapping[str, Any], shape: Shape) -> Step:
    """Sums, products, activations."""
    inputs = features_in(arguments)
    branches = [features for features in inputs if features.axes]
    return Step(merge_features(inputs, shape), "merge" if len(branches) > 1 else "point")


def holds_units(features: Features, dim: int) -> bool:
    """Whether a dimension holds units of the image."""
    return any(part.axis for part in features.layout[dim])


def resampled(features: Features, index: int, size: int, resample: Callable[[Axis, int], Axis]) -> Features:
    """Applies a window to a dimension; one that is no axis of the image keeps its field."""
    if not (name := features.full_axis(index)):
        return features.with_dimension(index, (Part(size),) if size > 1 else ())
    axes = {**features.axes, name: resample(features.axes[name], size)}
    return Features(features.layout, axes).with_dimension(index, (Part(size, name),))


def windowed(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis, int], Axis]:
    """The window of a convolution or a pooling, for `resampled`."""
    return lambda axis, size: axis.window(size, kernel, stride, padding, dilation)


def each(value: Any, count: int | None) -> list[int]:
    """A value for each dimension, where one may stand for all."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if count and len(values) == 1 else values


def pair(values: Sequence[int]) -> Pair:
    """Height and width; an operation along one dimension leaves the other alone."""
    return (values[0], values[1]) if len(values) == 2 else (1, values[0])
