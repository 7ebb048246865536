"""What each operation of PyTorch does to the fields of the units: one rule for each kind.

A rule takes the operation's arguments by name, with `Features` in the place of tensors, and the shape of its result.
It knows nothing of modules and architectures. What has no rule, or does what a rule cannot follow, raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cifar_resnets.analysis.fields import Axis
from cifar_resnets.analysis.layout import HEIGHT, TOKENS, WIDTH, Features, Part, merge_features, plain_layout

__all__ = ["RULES", "Step", "follow"]

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


def follow(name: str, pointwise: bool, arguments: Mapping[str, Any], shape: Any) -> Step:
    """Follows an operation.

    Args:
        name: of the operation, such as `convolution`.
        pointwise: whether PyTorch says that it works on elements.
        arguments: by name; Features in the place of tensors.
        shape: of the result, or of each result.

    Raises:
        ValueError: for an operation that cannot be followed.
    """
    inputs = features_in(arguments)
    if not any(features.axes for features in inputs):
        return Step(_nothing_seen(shape))
    try:
        if name in RULES:
            return RULES[name](arguments, shape)
        if pointwise or name in ELEMENTWISE:
            return elementwise(arguments, shape)
        raise ValueError("is not known")
    except ValueError:
        # whatever is done to units that all see the whole image, the result sees it, too
        if all(features.sees_all for features in inputs) and isinstance(shape, tuple):
            return Step(_everything_seen(inputs, shape))
        raise


def features_in(value: Any) -> list[Features]:
    """All features in arguments, which may be nested."""
    if isinstance(value, Features):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [found for item in value for found in features_in(item)] if isinstance(value, (list, tuple)) else []


def _nothing_seen(shape: Any) -> Features | tuple[Features, ...]:
    if isinstance(shape, list):
        return tuple(Features(plain_layout(each)) for each in shape)
    return Features(plain_layout(shape))


def _everything_seen(inputs: Sequence[Features], shape: Shape) -> Features:
    fixed = [replace(features, layout=()) for features in inputs if features.axes]
    return replace(merge_features(fixed, ()), layout=plain_layout(shape))


def elementwise(arguments: Mapping[str, Any], shape: Shape) -> Step:
    """Sums, products, activations."""
    inputs = features_in(arguments)
    branches = [features for features in inputs if features.axes]
    return Step(merge_features(inputs, shape), "merge" if len(branches) > 1 else "point")


def _copy(arguments: Mapping[str, Any], shape: Shape) -> Step:
    return Step(merge_features([arguments["src"]], shape), "point")


def _norm(arguments: Mapping[str, Any], shape: Any) -> Step:
    # by convention, statistics are no part of the field: a norm is transparent
    features: Features = arguments["input"]
    normalized = range(len(features.shape) - len(arguments.get("normalized_shape") or ()), len(features.shape))
    spatial = arguments.get("training") or "group" in arguments or any(_moves(features, dim) for dim in normalized)
    note = "its statistics, taken over all of the image, are not counted" if spatial else ""
    outputs = (features, *(Features(plain_layout(each)) for each in shape[1:])) if isinstance(shape, list) else features
    return Step(outputs, "norm", note=note)


def _moves(features: Features, dim: int) -> bool:
    """Whether a dimension holds units of the image."""
    return any(part.axis for part in features.layout[dim])


# Windows.


def _convolution(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features, weight = arguments["input"], arguments["weight"]
    transposed, groups = arguments["transposed"], arguments["groups"]
    kernel = weight.shape[2:]
    spatial = [_each(arguments[key], len(kernel)) for key in ("stride", "padding", "dilation")]
    channels = features.shape[1]
    if groups > 1 and _moves(features, 1):
        raise ValueError("convolves groups of channels in which units of the image are mixed")
    features = features.collapsed([1]).with_dimension(1, (Part(shape[1]),))
    for index, (k, s, p, d) in enumerate(zip(kernel, *spatial, strict=True)):
        window = _transposed(k, s, p, d) if transposed else _window(k, s, p, d)
        features = _resampled(features, index + 2, shape[index + 2], window)
    # weights may depend on the image, too
    output = merge_features([features, replace(weight, layout=())], shape) if weight.axes else features
    units = math.prod(arguments["input"].shape if transposed else shape)
    macs = units * math.prod(kernel) * weight.shape[1]
    sizes = (_pair(value) for value in (kernel, *spatial))
    return Step(output, "conv", *sizes, groups, (channels, shape[1]), macs)


def _window(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis, int], Axis]:
    return lambda axis, size: axis.window(size, kernel, stride, padding, dilation)


def _transposed(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis, int], Axis]:
    def units(unit: int) -> list[int]:
        taps = [unit + padding - tap * dilation for tap in range(kernel)]
        return [tap // stride for tap in taps if tap % stride == 0]

    def resample(axis: Axis, size: int) -> Axis:
        return axis.resampled(units, size, len(axis.fields) * stride, axis.step)

    if any(not units(unit) for unit in range(stride)):
        raise ValueError("leaves units that see nothing (its stride is longer than its kernel)")
    return resample


def _resampled(features: Features, index: int, size: int, resample: Callable[[Axis, int], Axis]) -> Features:
    """Applies a window to a dimension; one that is no axis of the image keeps its field."""
    if not (name := features.full_axis(index)):
        return features.with_dimension(index, (Part(size),) if size > 1 else ())
    axes = {**features.axes, name: resample(features.axes[name], size)}
    return Features(features.layout, axes).with_dimension(index, (Part(size, name),))


def _pool(arguments: Mapping[str, Any], shape: Any) -> Step:
    outputs = shape if isinstance(shape, list) else [shape]
    features = arguments["self"]
    kernel = _each(arguments["kernel_size"], 2)
    spatial = [_each(arguments[key] or default, 2) for key, default in (("stride", kernel), ("padding", 0))]
    dilation = _each(arguments.get("dilation", 1), 2)
    for index, window in enumerate(zip(kernel, *spatial, dilation, strict=True), start=len(outputs[0]) - 2):
        features = _resampled(features, index, outputs[0][index], _window(*window))
    sizes = (_pair(value) for value in (kernel, *spatial, dilation))
    return Step((features,) * len(outputs) if isinstance(shape, list) else features, "pool", *sizes)


def _adaptive_pool(arguments: Mapping[str, Any], shape: Any) -> Step:
    outputs = shape if isinstance(shape, list) else [shape]
    features, first = arguments["self"], len(outputs[0]) - 2
    sizes = list(zip(features.shape[first:], outputs[0][first:], strict=True))
    for index, (units, size) in enumerate(sizes, start=first):
        if size == 1:
            features = features.collapsed([index])
        else:
            features = _resampled(features, index, size, _bins(units, size))
    kernel, stride = _pair([units // size for units, size in sizes]), _pair([units // size for units, size in sizes])
    stride = _pair([1 if size == 1 else step for (_, size), step in zip(sizes, stride, strict=True)])
    return Step((features,) * len(outputs) if isinstance(shape, list) else features, "pool", kernel, stride)


def _bins(units: int, size: int) -> Callable[[Axis, int], Axis]:
    """Windows of adaptive pooling, which differ in length where `size` does not divide `units`."""

    def resample(axis: Axis, _: int) -> Axis:
        period = size // math.gcd(units, size) * len(axis.fields)
        span = period * units // size
        return axis.resampled(
            lambda unit: range(unit * units // size, -(-(unit + 1) * units // size)), size, period, span * axis.jump
        )

    return resample


def _reduction(arguments: Mapping[str, Any], shape: Any) -> Step:
    if "other" in arguments:  # the larger of two
        return elementwise(arguments, shape)
    outputs = shape if isinstance(shape, list) else [shape]
    features: Features = arguments["self"]
    dims = arguments.get("dim")
    dims = list(range(len(features.shape))) if dims is None or dims == [] else _each(dims, None)
    dims = [dim % len(features.shape) for dim in dims]
    sizes = _pair(
        [math.prod(part.size for part in features.parts(name) if _lies(features, part, dims)) for name in AXES]
    )
    result = features.collapsed(dims)
    if not arguments.get("keepdim"):
        result = replace(result, layout=tuple(d for index, d in enumerate(result.layout) if index not in dims))
    kind = "pool" if sizes != (1, 1) else "point"
    return Step((result,) * len(outputs) if isinstance(shape, list) else result, kind, sizes)


def _lies(features: Features, part: Part, dims: Sequence[int]) -> bool:
    return any(part in features.layout[dim] for dim in dims)


def _softmax(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(shape)
    if not _moves(features, dim):
        return Step(features, "point")
    mixed = features.collapsed([dim])
    return Step(merge_features([features, mixed], shape), "merge")


# Products of matrices.


def _matmul(first: str, second: str) -> Callable[[Mapping[str, Any], Shape], Step]:
    def rule(arguments: Mapping[str, Any], shape: Shape) -> Step:
        left, right = arguments[first], arguments[second]
        macs = math.prod(shape) * left.shape[-1]
        output = _product(left, right, shape)
        if isinstance(bias := arguments.get("self"), Features) and bias.axes and "self" not in (first, second):
            output = merge_features([output, bias], shape)
        kind = "merge" if left.axes and right.axes else "linear"
        return Step(output, kind, channels=(left.shape[-1], shape[-1]), macs=macs)

    return rule


def _product(left: Features, right: Features, shape: Shape) -> Features:
    """Rows of the one, columns of the other; both lose the dimension over which is summed."""
    last = len(shape) - 1
    rows, columns = left.collapsed([last]), right.collapsed([last - 1])
    for name in AXES:
        in_rows, in_columns = (
            [part for part in side.layout[index] if part.axis in (name, TOKENS)]
            for side, index in ((rows, last - 1), (columns, last))
        )
        if (in_rows or in_columns) and any(
            part.axis in (name, TOKENS) for side in (rows, columns) for each in side.layout[: last - 1] for part in each
        ):
            raise ValueError("mixes units within windows of the image")
        if in_rows and in_columns:  # each unit with each: the rows' units go on, and see all
            columns = columns.with_dimension(last, ())
    return merge_features([rows, columns], shape)


def _attention(arguments: Mapping[str, Any], shape: Any) -> Step:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    outputs = shape if isinstance(shape, list) else [shape]
    scores = _product(query, key.permuted([*range(len(key.shape) - 2), -1, -2]), (*query.shape[:-1], key.shape[-2]))
    output = _product(scores, value, outputs[0])
    macs = math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    others = tuple(Features(plain_layout(each)) for each in outputs[1:])
    return Step((output, *others) if isinstance(shape, list) else output, "merge", macs=macs)


# Moves.


def _view(arguments: Mapping[str, Any], shape: Shape) -> Step:
    return Step(arguments["self"].reshaped(shape))


def _permute(arguments: Mapping[str, Any], shape: Shape) -> Step:
    return Step(arguments["self"].permuted(arguments["dims"]))


def _transpose(arguments: Mapping[str, Any], shape: Shape) -> Step:
    order = list(range(len(shape)))
    first, second = arguments.get("dim0", 0), arguments.get("dim1", -1)
    order[first], order[second] = order[second], order[first]
    return Step(arguments["self"].permuted(order))


def _expand(arguments: Mapping[str, Any], shape: Shape) -> Step:
    return Step(merge_features([arguments["self"]], shape))


def _repeat(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features: Features = arguments["self"]
    layout = ((),) * (len(shape) - len(features.layout)) + features.layout
    for index, (times, size) in enumerate(zip(arguments["repeats"], shape, strict=True)):
        if times > 1:
            if any(part.axis and part.size > 1 for part in layout[index]):
                raise ValueError("repeats units of the image")
            layout = (*layout[:index], (Part(size),), *layout[index + 1 :])
    return Step(replace(features, layout=layout))


def _slice(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features: Features = arguments["self"]
    dim, step = arguments["dim"] % len(shape), arguments["step"]
    start = min(_from_the_front(arguments["start"] or 0, features.shape[dim]), features.shape[dim])
    return _taken(features, dim, start, step, shape[dim])


def _taken(features: Features, dim: int, start: int, step: int, size: int) -> Step:
    """Each `step`-th unit from `start` on."""
    if size == features.shape[dim] and start == 0 and step == 1:
        return Step(features)
    result = _resampled(features, dim, size, _window(1, step, -start, 1))
    return Step(result, "move" if _moves(features, dim) else "", stride=_along(result, dim, step, otherwise=1))


def _along(features: Features, dim: int, value: int, otherwise: int) -> Pair:
    names = {part.axis for part in features.layout[dim]}
    return (value if HEIGHT in names else otherwise, value if WIDTH in names else otherwise)


def _select(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(features.shape)
    if name := features.full_axis(dim):
        axis = features.axes[name]
        unit = _from_the_front(arguments["index"], axis.size)
        features = replace(features, axes={**features.axes, name: axis.fixed(axis.at(unit))})
    return Step(replace(features, layout=(*features.layout[:dim], *features.layout[dim + 1 :])))


def _split(arguments: Mapping[str, Any], shapes: list[Shape]) -> Step:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(shapes[0])
    starts = [sum(shape[dim] for shape in shapes[:index]) for index in range(len(shapes))]
    steps = [_taken(features, dim, start, 1, shape[dim]) for start, shape in zip(starts, shapes, strict=True)]
    return Step(tuple(step.output for step in steps if isinstance(step.output, Features)))


def _unbind(arguments: Mapping[str, Any], shapes: list[Shape]) -> Step:
    steps = [_select({**arguments, "index": index}, shape) for index, shape in enumerate(shapes)]
    return Step(tuple(step.output for step in steps if isinstance(step.output, Features)))


def _pad(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features: Features = arguments["self"]
    amounts = arguments.get("pad") or arguments["padding"]
    moved, padding = features, (0, 0)
    for index, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        if before or after:
            moved = _resampled(moved, len(shape) - index, shape[-index], _window(1, 1, before, 1))
            height, width = _along(moved, len(shape) - index, before, otherwise=0)
            padding = (padding[0] + height, padding[1] + width)
    return Step(moved, "move" if moved.axes != features.axes else "point", padding=padding)


def _concatenation(arguments: Mapping[str, Any], shape: Shape) -> Step:
    inputs = [features for features in arguments["tensors"] if math.prod(features.shape)]
    dim = arguments["dim"] % len(shape)
    token_row = any(_moves(features, dim) for features in inputs)
    if token_row and any(len({HEIGHT, WIDTH} & {p.axis for p in f.layout[dim]}) == 1 for f in inputs):
        raise ValueError("joins features along an axis of the image")
    rest = [features.with_dimension(dim, ()) for features in inputs]
    if token_row:  # the axes' units go into the row; class tokens see nothing
        rest = [replace(features, layout=_one_row(features, dim)) for features in inputs]
    merged = merge_features(rest, (*shape[:dim], 1, *shape[dim + 1 :]))
    row = Part(shape[dim], TOKENS if token_row else "")
    branches = [features for features in inputs if features.axes]
    return Step(merged.with_dimension(dim, (row,)), "merge" if len(branches) > 1 else "point")


def _one_row(features: Features, dim: int) -> Any:
    return features.with_dimension(dim, (Part(1, TOKENS),) if features.axes else ()).layout


def _stack(arguments: Mapping[str, Any], shape: Shape) -> Step:
    dim = arguments["dim"] % len(shape)
    inputs = [replace(f, layout=(*f.layout[:dim], (), *f.layout[dim:])) for f in arguments["tensors"]]
    merged = merge_features(inputs, (*shape[:dim], 1, *shape[dim + 1 :]))
    return Step(merged.with_dimension(dim, (Part(shape[dim]),)), "merge" if len(inputs) > 1 else "point")


def _unsqueeze(arguments: Mapping[str, Any], shape: Shape) -> Step:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(shape)
    return Step(replace(features, layout=(*features.layout[:dim], (), *features.layout[dim:])))


def _squeeze(arguments: Mapping[str, Any], shape: Shape) -> Step:
    return Step(arguments["self"].reshaped(shape))


def _reorder(arguments: Mapping[str, Any], shape: Shape) -> Step:
    """Rolls and flips: followed as long as only plain dimensions are touched."""
    features: Features = arguments["self"]
    dims = _each(arguments["dims"], None) or range(len(shape))
    if any(_moves(features, dim) for dim in dims):
        raise ValueError("puts units of the image into another order")
    return Step(features)


def _upsample(reach: int) -> Callable[[Mapping[str, Any], Shape], Step]:
    """Nearest (reach 0), bilinear (1) and bicubic (2) interpolation."""

    def rule(arguments: Mapping[str, Any], shape: Shape) -> Step:
        if arguments.get("align_corners"):
            raise ValueError("interpolates with align_corners, which has no constant step")
        features: Features = arguments.get("input") or arguments["self"]
        for index in range(2, len(shape)):
            features = _resampled(features, index, shape[index], _interpolated(features.shape[index], reach))
        return Step(features, "move")

    return rule


def _interpolated(units: int, reach: int) -> Callable[[Axis, int], Axis]:
    def resample(axis: Axis, size: int) -> Axis:
        def taps(unit: int) -> list[int]:
            if not reach:
                return [unit * units // size]
            centre = ((2 * unit + 1) * units / size - 1) / 2
            low = math.floor(centre)
            return [low] if low == centre else [low + tap for tap in range(1 - reach, reach + 1)]

        period = size // math.gcd(units, size) * len(axis.fields)
        return axis.resampled(taps, size, period, period * units / size * axis.jump)

    return resample


def _from_the_front(index: int, size: int) -> int:
    return index + size if index < 0 else index


def _each(value: Any, count: int | None) -> list[int]:
    """A value for each dimension, where one may stand for all."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if count and len(values) == 1 else values


def _pair(values: Sequence[int]) -> Pair:
    """Height and width; an operation along one dimension leaves the other alone."""
    return (values[0], values[1]) if len(values) == 2 else (1, values[0])


AXES = (HEIGHT, WIDTH)
ELEMENTWISE = {
    *("_to_copy", "clone", "detach", "detach_", "alias", "contiguous", "lift_fresh", "hardswish", "hardswish_"),
    *("native_dropout", "dropout", "prelu", "_prelu_kernel", "rrelu_with_noise", "as_strided_"),
}
RULES: dict[str, Callable[[Mapping[str, Any], Any], Step]] = {
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "max_pool2d"), _pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean"), _reduction),
    **dict.fromkeys(("linalg_vector_norm", "norm", "logsumexp"), _reduction),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "native_layer_norm", "_fused_rms_norm"), _norm),
    "native_group_norm": _norm,
    "copy_": _copy,
    "mm": _matmul("self", "mat2"),
    "bmm": _matmul("self", "mat2"),
    "addmm": _matmul("mat1", "mat2"),
    "baddbmm": _matmul("batch1", "batch2"),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math_for_mps",
            "_scaled_dot_product_efficient_attention",
        ),
        _attention,
    ),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t", "transpose_"), _transpose),
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
    "upsample_nearest2d": _upsample(0),
    "upsample_bilinear2d": _upsample(1),
    "upsample_bicubic2d": _upsample(2),
}
