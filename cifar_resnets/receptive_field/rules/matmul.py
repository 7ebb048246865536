"""Rules of operations that mix all elements along a dimension: matrix products, attention, softmax, reductions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cifar_resnets.receptive_field.features import TOKENS, Features, Part, merge_features, plain_layout
from cifar_resnets.receptive_field.rules.base import (
    AXES,
    Operation,
    Rules,
    Shape,
    each,
    elementwise,
    holds_units,
    pair,
    repeated,
)


def _reduction(arguments: Mapping[str, Any], shape: Any) -> Operation:
    if "other" in arguments:  # max(self, other) is elementwise
        return elementwise(arguments, shape)
    features: Features = arguments["self"]
    dims = arguments.get("dim")
    dims = list(range(len(features.shape))) if dims is None or dims == [] else each(dims, None)
    dims = [dim % len(features.shape) for dim in dims]
    sizes = pair(
        [math.prod(part.size for part in features.parts(name) if _lies(features, part, dims)) for name in AXES]
    )
    result = features.collapsed(dims)
    if not arguments.get("keepdim"):
        result = replace(result, layout=tuple(d for index, d in enumerate(result.layout) if index not in dims))
    kind = "pool" if sizes != (1, 1) else "point"
    return Operation(repeated(result, shape), kind, sizes)


def _lies(features: Features, part: Part, dims: Sequence[int]) -> bool:
    return any(part in features.layout[dim] for dim in dims)


def _softmax(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features: Features = arguments["self"]
    dim = arguments["dim"] % len(shape)
    if not holds_units(features, dim):
        return Operation(features, "point")
    mixed = features.collapsed([dim])
    return Operation(merge_features([features, mixed], shape), "merge")


def _matmul(first: str, second: str) -> Callable[[Mapping[str, Any], Shape], Operation]:
    def rule(arguments: Mapping[str, Any], shape: Shape) -> Operation:
        left, right = arguments[first], arguments[second]
        macs = math.prod(shape) * left.shape[-1]
        output = _product(left, right, shape)
        if isinstance(bias := arguments.get("self"), Features) and bias.axes and "self" not in (first, second):
            output = merge_features([output, bias], shape)
        kind = "merge" if left.axes and right.axes else "linear"
        return Operation(output, kind, channels=(left.shape[-1], shape[-1]), macs=macs)

    return rule


def _product(left: Features, right: Features, shape: Shape) -> Features:
    """Multiplies matrices: the rows of one and the columns of the other remain, the summed dimension is reduced."""
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
        if in_rows and in_columns:  # each unit meets each: the units of the rows remain, and see all
            columns = columns.with_dimension(last, ())
    return merge_features([rows, columns], shape)


def _attention(arguments: Mapping[str, Any], shape: Any) -> Operation:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    masks = [arguments[name] for name in ("attn_mask", "attn_bias") if arguments.get(name) is not None]
    if arguments.get("is_causal") or any(mask.axes for mask in masks):
        raise ValueError("masks out units by their place in a row or by what they see")
    outputs = shape if isinstance(shape, list) else [shape]
    scores = _product(query, key.permuted([*range(len(key.shape) - 2), -1, -2]), (*query.shape[:-1], key.shape[-2]))
    output = _product(scores, value, outputs[0])
    macs = math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    others = tuple(Features(plain_layout(each)) for each in outputs[1:])
    return Operation((output, *others) if isinstance(shape, list) else output, "merge", macs=macs)


MATMULS: Rules = {
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean"), _reduction),
    **dict.fromkeys(("linalg_vector_norm", "norm", "logsumexp"), _reduction),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _softmax),
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
}
