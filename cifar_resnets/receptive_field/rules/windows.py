"""Rules of operations whose units see a window of units: convolution, pooling, interpolation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from cifar_resnets.receptive_field.features import Features, Part, merge_features
from cifar_resnets.receptive_field.fields import Axis
from cifar_resnets.receptive_field.rules.base import (
    Operation,
    Rules,
    Shape,
    each,
    holds_units,
    pair,
    repeated,
    resampled,
    windowed,
)

# maps an output unit, and the number of input units per output unit, to the input units that it sees
Taps = Callable[[int, Fraction], list[int]]


def _convolution(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    features, weight = arguments["input"], arguments["weight"]
    transposed, groups = arguments["transposed"], arguments["groups"]
    kernel = weight.shape[2:]
    spatial = [each(arguments[key], len(kernel)) for key in ("stride", "padding", "dilation")]
    channels = features.shape[1]
    if groups > 1 and holds_units(features, 1):
        raise ValueError("convolves groups of channels in which units of the image are mixed")
    features = features.collapsed([1]).with_dimension(1, (Part(shape[1]),))
    for index, (k, s, p, d) in enumerate(zip(kernel, *spatial, strict=True)):
        window = _transposed(k, s, p, d) if transposed else windowed(k, s, p, d)
        features = resampled(features, index + 2, shape[index + 2], window)
    # the weights of a dynamic convolution depend on the image, too
    others = [replace(other, layout=()) for other in (weight, arguments["bias"]) if other is not None and other.axes]
    output = merge_features([features, *others], shape) if others else features
    units = math.prod(arguments["input"].shape if transposed else shape)
    macs = units * math.prod(kernel) * weight.shape[1]
    k, s, p, d = (pair(value) for value in (kernel, *spatial))
    return Operation(output, "conv", k, s, p, d, groups, (channels, shape[1]), macs)


def _transposed(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis, int], Axis]:
    def units(unit: int) -> list[int]:
        taps = [unit + padding - tap * dilation for tap in range(kernel)]
        return [tap // stride for tap in taps if tap % stride == 0]

    def resample(axis: Axis, size: int) -> Axis:
        return axis.resampled(units, size, len(axis.fields) * stride, axis.step)

    if any(not units(unit) for unit in range(stride)):
        raise ValueError("leaves units that see nothing (its stride is longer than its kernel)")
    return resample


def _pool(arguments: Mapping[str, Any], shape: Any) -> Operation:
    first_shape = shape[0] if isinstance(shape, list) else shape
    features = arguments["self"]
    kernel = each(arguments["kernel_size"], 2)
    spatial = [each(arguments[key] or default, 2) for key, default in (("stride", kernel), ("padding", 0))]
    dilation = each(arguments.get("dilation", 1), 2)
    for index, window in enumerate(zip(kernel, *spatial, dilation, strict=True), start=len(first_shape) - 2):
        features = resampled(features, index, first_shape[index], windowed(*window))
    k, s, p, d = (pair(value) for value in (kernel, *spatial, dilation))
    return Operation(repeated(features, shape), "pool", k, s, p, d)


def _adaptive_pool(arguments: Mapping[str, Any], shape: Any) -> Operation:
    first_shape = shape[0] if isinstance(shape, list) else shape
    features, first = arguments["self"], len(first_shape) - 2
    sizes = list(zip(features.shape[first:], first_shape[first:], strict=True))
    for index, (units, size) in enumerate(sizes, start=first):
        if size == 1:
            features = features.collapsed([index])
        else:
            features = resampled(features, index, size, _bins(units, size))
    kernel = pair([units // size for units, size in sizes])
    stride = pair([1 if size == 1 else units // size for units, size in sizes])
    return Operation(repeated(features, shape), "pool", kernel, stride)


def _bins(units: int, size: int) -> Callable[[Axis, int], Axis]:
    """Returns the windows of adaptive pooling, which differ in length if `size` does not divide `units`."""

    def resample(axis: Axis, _: int) -> Axis:
        period = size // math.gcd(units, size) * len(axis.fields)
        span = period * units // size
        return axis.resampled(
            lambda unit: range(unit * units // size, -(-(unit + 1) * units // size)), size, period, axis.pixels(span)
        )

    return resample


def _around(reach: int) -> Taps:
    """Returns the taps of an interpolation: the units on either side of a unit's centre, or the one that it lies on."""

    def taps(unit: int, ratio: Fraction) -> list[int]:
        centre = ((2 * unit + 1) * ratio - 1) / 2
        low = math.floor(centre)
        return [low] if low == centre else [low + tap for tap in range(1 - reach, reach + 1)]

    return taps


TAPS: dict[str, Taps] = {
    "nearest": lambda unit, ratio: [math.floor(unit * ratio)],
    "nearest-exact": lambda unit, ratio: [math.floor((unit + Fraction(1, 2)) * ratio)],
    "bilinear": _around(1),
    "bicubic": _around(2),
}


def _upsample(mode: str) -> Callable[[Mapping[str, Any], Shape], Operation]:
    def rule(arguments: Mapping[str, Any], shape: Shape) -> Operation:
        if arguments.get("align_corners"):
            raise ValueError("interpolates with align_corners, which has no constant step")
        features: Features = arguments.get("input") or arguments["self"]
        given = arguments.get("scale_factors") or [arguments.get("scales_h"), arguments.get("scales_w")]
        for index, scale in enumerate(given, start=2):
            ratio = Fraction(features.shape[index], shape[index])
            if scale:  # PyTorch uses a given factor, even if the size was rounded
                ratio = 1 / Fraction(scale).limit_denominator(1000)
            features = resampled(features, index, shape[index], _interpolated(ratio, TAPS[mode]))
        return Operation(features, "resample")

    return rule


def _interpolated(ratio: Fraction, taps: Taps) -> Callable[[Axis, int], Axis]:
    """Returns the window of an interpolation, for `resampled`; `ratio` is the number of input units per output unit."""

    def resample(axis: Axis, size: int) -> Axis:
        period = ratio.denominator * len(axis.fields)
        step = axis.pixels(ratio.numerator * len(axis.fields))
        return axis.resampled(lambda unit: taps(unit, ratio), size, period, step)

    return resample


def _pixel_shuffle(arguments: Mapping[str, Any], shape: Shape) -> Operation:
    """Turns blocks of channels into blocks of units with the same field."""
    features: Features = arguments["self"]
    channels, ratio = len(shape) - 3, Fraction(1, arguments["upscale_factor"])
    if holds_units(features, channels):
        raise ValueError("makes units of channels in which units of the image are mixed")
    features = features.with_dimension(channels, (Part(shape[channels]),))
    for index in (channels + 1, channels + 2):
        features = resampled(features, index, shape[index], _interpolated(ratio, TAPS["nearest"]))
    return Operation(features, "resample")


WINDOWS: Rules = {
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "max_pool2d"), _pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    "upsample_nearest2d": _upsample("nearest"),
    "_upsample_nearest_exact2d": _upsample("nearest-exact"),
    "upsample_bilinear2d": _upsample("bilinear"),
    "upsample_bicubic2d": _upsample("bicubic"),
    "pixel_shuffle": _pixel_shuffle,
}
