"""The result of a rule, and functions that the rules of several operations use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features, Part, merge_features, plain_layout
from cifar_resnets.receptive_field.fields import Axis

AXES = (HEIGHT, WIDTH)

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Operation:
    """An operation of a network, as its rule describes it.

    Args:
        output: features that it returns; several if it splits a tensor.
        kind: "conv", "pool", "linear", "norm", "merge", "resample" (of units along the image) or "point" (elementwise);
            empty if it only rearranges elements.
        kernel, stride, padding, dilation: height and width in units of the layer before.
        groups: of a convolution.
        channels: in and out, if they differ from those of the features.
        macs: multiply-adds for a batch.
        note: a remark for the reader of the table.
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


# A rule takes the operation's arguments by name, with Features in place of tensors, and the shape of its result, or a
# list with the shape of each result.
Rules = dict[str, Callable[[Mapping[str, Any], Any], Operation]]


def features_in(value: Any) -> list[Features]:
    """Returns all features in arguments, which may be nested."""
    if isinstance(value, Features):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [found for item in value for found in features_in(item)] if isinstance(value, (list, tuple)) else []


def repeated(features: Features, shape: Any) -> Features | tuple[Features, ...]:
    """Returns the features of a result, or of several equal results if there are several shapes."""
    return (features,) * len(shape) if isinstance(shape, list) else features


def nothing_seen(shape: Any) -> Features | tuple[Features, ...]:
    """Returns the features of results that do not depend on the image."""
    if isinstance(shape, list):
        return tuple(Features(plain_layout(each)) for each in shape)
    return Features(plain_layout(shape))


def elementwise(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    """Applies to sums, products and activations."""
    inputs = features_in(arguments)
    branches = [features for features in inputs if features.axes]
    return Operation(merge_features(inputs, shape), "merge" if len(branches) > 1 else "point")


def holds_units(features: Features, dim: int) -> bool:
    """Returns whether a dimension holds units of the image."""
    return any(part.axis for part in features.layout[dim])


def resampled(features: Features, index: int, size: int, resample: Callable[[Axis, int], Axis]) -> Features:
    """Applies a window to a dimension; if it is no axis of the image, the fields do not change."""
    if not (name := features.full_axis(index)):
        return features.with_dimension(index, (Part(size),) if size > 1 else ())
    axes = {**features.axes, name: resample(features.axes[name], size)}
    return Features(features.layout, axes).with_dimension(index, (Part(size, name),))


def windowed(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis, int], Axis]:
    """Returns the window of a convolution or a pooling, for `resampled`."""
    return lambda axis, size: axis.window(size, kernel, stride, padding, dilation)


def each(value: Any, count: int | None) -> list[int]:
    """Returns a value for each dimension; a single one is repeated."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if count and len(values) == 1 else values


def pair(values: Sequence[int]) -> Pair:
    """Returns values for height and width; the height of an operation along one dimension is 1."""
    return (values[0], values[1]) if len(values) == 2 else (1, values[0])
