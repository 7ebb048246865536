"""Rules of operations that rearrange elements: views, slices, padding, concatenation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cifar_resnets.receptive_field.features import HEIGHT, TOKENS, WIDTH, Features, Part, merge_features
from cifar_resnets.receptive_field.fields import join
from cifar_resnets.receptive_field.rules.base import (
    AXES,
    Operation,
    Pair,
    Rules,
    Shape,
    each,
    holds_units,
    resampled,
    windowed,
)


def _view(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    return Operation(arguments["self"].reshaped(shape))


def _permute(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    return Operation(arguments["self"].permuted(arguments["dims"]))


def _transpose(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    order = list(range(len(shape)))
    first, second = arguments.get("dim0", 0), arguments.get("dim1", -1)
    order[first], order[second] = order[second], order[first]
    return Operation(arguments["self"].permuted(order))


def _expand(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    return Operation(merge_features([arguments["self"]], shape))


def _repeat(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    layout = ((),) * (len(shape) - len(features.layout)) + features.layout
    for index, (times, size) in enumerate(zip(arguments["repeats"], shape, strict=True)):
        if times > 1:
            if any(part.axis and part.size > 1 for part in layout[index]):
                raise ValueError("repeats units of the image")
            layout = (*layout[:index], (Part(size),), *layout[index + 1 :])
    return Operation(replace(features, layout=layout))


def _slice(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    dim, step = arguments["dim"] % len(shape), arguments["step"]
    start = min(max(0, _from_the_front(arguments["start"] or 0, features.shape[dim])), features.shape[dim])
    return _taken(features, dim, start, step, shape[dim])


def _taken(features: Features, dim: int, start: int, step: int, size: int) -> Operation:
    """Takes every `step`-th unit from `start` on."""
    if size == features.shape[dim] and start == 0 and step == 1:
        return Operation(features)
    result = resampled(features, dim, size, windowed(1, step, -start, 1))
    kind = "resample" if holds_units(features, dim) else ""
    return Operation(result, kind, stride=_along(result, dim, step, otherwise=1))


def _along(features: Features, dim: int, value: int, otherwise: int) -> Pair:
    names = {part.axis for part in features.layout[dim]}
    return (value if HEIGHT in names else otherwise, value if WIDTH in names else otherwise)


def _select(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(features.shape)
    if name := features.full_axis(dim):
        axis = features.axes[name]
        unit = _from_the_front(arguments["index"], axis.size)
        features = replace(features, axes={**features.axes, name: axis.fixed(axis.at(unit))})
    return Operation(replace(features, layout=(*features.layout[:dim], *features.layout[dim + 1 :])))


def _split(arguments: Mapping[str, Any], shapes: list[Shape]) -> Operation:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(shapes[0])
    starts = [sum(shape[dim] for shape in shapes[:index]) for index in range(len(shapes))]
    steps = [_taken(features, dim, start, 1, shape[dim]) for start, shape in zip(starts, shapes, strict=True)]
    return Operation(tuple(step.output for step in steps if isinstance(step.output, Features)))


def _unbind(arguments: Mapping[str, Any], shapes: list[Shape]) -> Operation:
    steps = [_select({**arguments, "index": index}, shape) for index, shape in enumerate(shapes)]
    return Operation(tuple(step.output for step in steps if isinstance(step.output, Features)))


def _pad(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    amounts = arguments.get("pad") or arguments["padding"]
    padded, padding = features, (0, 0)
    for index, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        if before or after:
            padded = resampled(padded, len(shape) - index, shape[-index], windowed(1, 1, before, 1))
            height, width = _along(padded, len(shape) - index, before, otherwise=0)
            padding = (padding[0] + height, padding[1] + width)
    return Operation(padded, "resample" if padded.axes != features.axes else "point", padding=padding)


def _concatenation(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    inputs = [features for features in arguments["tensors"] if math.prod(features.shape)]
    dim = arguments["dim"] % len(shape)
    token_row = any(holds_units(features, dim) for features in inputs)
    if token_row and not all(_is_row(features, dim) for features in inputs if features.axes):
        raise ValueError("joins features along an axis of the image")
    # tokens that do not depend on the image, such as a class token, have no field
    part = Part(1, TOKENS) if token_row else Part(1)
    ones = [features.with_dimension(dim, (part,) if features.axes else ()) for features in inputs]
    merged = _side_by_side(ones, (*shape[:dim], 1, *shape[dim + 1 :]))
    rows = tuple(features.layout[dim] or (Part(1),) for features in inputs) if token_row else ()
    row = Part(shape[dim], TOKENS, rows=rows) if token_row else Part(shape[dim])
    branches = [features for features in inputs if features.axes]
    return Operation(merged.with_dimension(dim, (row,)), "merge" if len(branches) > 1 else "point")


def _is_row(features: Features, dim: int) -> bool:
    """Returns whether a dimension holds all units along both axes of the image."""
    parts = {part for name in AXES for part in features.parts(name)}
    names = {part.axis for part in features.layout[dim]}
    return parts <= {*features.layout[dim]} and (TOKENS in names or {HEIGHT, WIDTH} <= names)


def _side_by_side(inputs: Sequence[Features], shape: Shape) -> Features:
    """Merges the features of a concatenation.

    Raises:
        ValueError: when single units with different fields are joined, which would be an axis of the image.
    """
    for name in AXES:
        axes = [features.axes[name] for features in inputs if name in features.axes]
        fields = [axis.at(0) for axis in axes if axis.size == 1]
        if fields and (whole := join(fields)) and all(field[:2] != whole[:2] for field in fields):
            raise ValueError("lays side by side what single units of the image see")
    return merge_features(inputs, shape)


def _stack(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    dim = arguments["dim"] % len(shape)
    inputs = [replace(f, layout=(*f.layout[:dim], (), *f.layout[dim:])) for f in arguments["tensors"]]
    merged = _side_by_side(inputs, (*shape[:dim], 1, *shape[dim + 1 :]))
    return Operation(merged.with_dimension(dim, (Part(shape[dim]),)), "merge" if len(inputs) > 1 else "point")


def _unsqueeze(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(shape)
    return Operation(replace(features, layout=(*features.layout[:dim], (), *features.layout[dim:])))


def _squeeze(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    return Operation(arguments["self"].reshaped(shape))


def _channel_shuffle(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    if holds_units(features, 1):
        raise ValueError("shuffles channels in which units of the image are mixed")
    return Operation(features)


def _pixel_unshuffle(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    """Turns blocks of units into blocks of channels."""
    features: Features = arguments["self"]
    *batch, channels, height, width = features.shape
    block, first = arguments["downscale_factor"], len(batch)
    split = features.reshaped((*batch, channels, height // block, block, width // block, block))
    order = (*range(first + 1), first + 2, first + 4, first + 1, first + 3)
    return Operation(split.permuted(order).reshaped(shape), "resample", (block, block), (block, block))


def _reorder(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    """Rolls or flips plain dimensions."""
    features: Features = arguments["self"]
    dims = each(arguments["dims"], None) or range(len(shape))
    if any(holds_units(features, dim) for dim in dims):
        raise ValueError("puts units of the image into another order")
    return Operation(features)


def _from_the_front(index: int, size: int) -> int:
    return index + size if index < 0 else index


def _restrided(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    """Sets new strides of a tensor with at most one long dimension, such as the 1x1 maps of a global pooling."""
    features: Features = arguments["self"]
    longer = [(size, stride) for size, stride in zip(shape, arguments["stride"], strict=True) if size > 1]
    if shape != features.shape or len(longer) > 1 or any(stride != 1 for _, stride in longer):
        raise ValueError("puts elements into another order")
    return Operation(features)


RESHAPES: Rules = {
    "as_strided_": _restrided,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t", "transpose_", "t_"), _transpose),
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _split),
    "unbind": _unbind,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "cat": _concatenation,
    "stack": _stack,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(("roll", "flip"), _reorder),
    "channel_shuffle": _channel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
