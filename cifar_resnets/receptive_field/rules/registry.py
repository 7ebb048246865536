"""The table of all rules, by the names of PyTorch's operations, and their application to a call.

A rule knows nothing of modules and architectures. An operation without a rule, or with arguments that its rule does not
support, raises ValueError: an error is better than a wrong number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cifar_resnets.receptive_field.features import Features, merge_features, plain_layout
from cifar_resnets.receptive_field.rules.base import (
    Operation,
    Rules,
    Shape,
    elementwise,
    features_in,
    holds_units,
    nothing_seen,
)
from cifar_resnets.receptive_field.rules.matmul import MATMULS
from cifar_resnets.receptive_field.rules.reshape import RESHAPES
from cifar_resnets.receptive_field.rules.windows import WINDOWS

ELEMENTWISE = {
    *("_to_copy", "clone", "detach", "detach_", "alias", "contiguous", "lift_fresh", "hardswish", "hardswish_"),
    *("native_dropout", "dropout", "prelu", "_prelu_kernel", "rrelu_with_noise", "masked_fill_"),
}
# use the shape of their tensor, but not its values
SHAPE_ONLY = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "zero_"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
}


def follow(name: str, pointwise: bool, arguments: Mapping[str, Any], shape: Any) -> Operation:
    """Applies the rule of an operation.

    Args:
        name: of the operation, such as `convolution`.
        pointwise: whether PyTorch tags it as elementwise.
        arguments: by name, with Features in place of tensors.
        shape: of the result, or a list of those of several results.

    Raises:
        ValueError: for an operation without a rule, or arguments that the rule does not support.
    """
    inputs = features_in(arguments)
    if not any(features.axes for features in inputs):
        return Operation(nothing_seen(shape))
    try:
        return _rule(name, pointwise)(arguments, shape)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError("is called in a way that is not known") from error
    except ValueError:
        # any function of units that see the whole image sees the whole image
        if all(features.sees_all for features in inputs) and isinstance(shape, tuple):
            return Operation(_everything_seen(inputs, shape))
        raise


def by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an operation by name, with defaults, without those that are only written to."""
    schema = func._schema.arguments
    written = {argument.name for argument in schema if argument.is_out}
    values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    values |= {argument.name: value for argument, value in zip(schema, args, strict=False)} | dict(kwargs)
    return {name: value for name, value in values.items() if name not in written}


def shapes_of(output: Any) -> Any:
    """Returns the shape of a result, or a list of those of several results."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    return [tuple(each.shape) if isinstance(each, Tensor) else () for each in output or ()]


def common_name(name: str) -> str:
    """Returns the name of an operation in PyTorch's public interface."""
    name = name.strip("_").removesuffix("_with_indices").removesuffix("_nd").removeprefix("constant_")
    return {"convolution": "conv", "mm": "matmul", "bmm": "matmul", "addmm": "linear"}.get(name, name)


def _rule(name: str, pointwise: bool) -> Callable[[Mapping[str, Any], Any], Operation]:
    rule = RULES.get(name) or (elementwise if pointwise or name in ELEMENTWISE else None)
    if rule is None:
        raise ValueError("is not known")
    return rule


def _everything_seen(inputs: Sequence[Features], shape: Shape) -> Features:
    fixed = [replace(features, layout=()) for features in inputs if features.axes]
    return replace(merge_features(fixed, ()), layout=plain_layout(shape))


def _copy(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    return Operation(merge_features([arguments["src"]], shape), "point")


def _fill(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    value = arguments["value"]
    return Operation(merge_features([value], shape) if isinstance(value, Features) else nothing_seen(shape), "point")


def _norm(arguments: Mapping[str, Any], shape: Any) -> Operation:
    # by convention, the field of a norm does not include its statistics
    features: Features = arguments["input"]
    if any(other.axes for other in features_in(arguments) if other is not features):
        raise ValueError("scales or shifts by what depends on the image")
    normalized = range(len(features.shape) - len(arguments.get("normalized_shape") or ()), len(features.shape))
    spatial = arguments.get("training") or "group" in arguments or any(holds_units(features, dim) for dim in normalized)
    note = "its statistics, taken over all of the image, are not counted" if spatial else ""
    outputs = (features, *(Features(plain_layout(each)) for each in shape[1:])) if isinstance(shape, list) else features
    return Operation(outputs, "norm", note=note)


RULES: Rules = {
    **WINDOWS,
    **MATMULS,
    **RESHAPES,
    **dict.fromkeys(SHAPE_ONLY, lambda _, shape: Operation(nothing_seen(shape))),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "native_layer_norm", "_fused_rms_norm"), _norm),
    "native_group_norm": _norm,
    "copy_": _copy,
    "fill_": _fill,
}
