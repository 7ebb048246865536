"""Which pixels of an image a unit of some layer sees, along one axis of the image.

Everything is counted in pixels of the image, as if it had no borders: a field may reach beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Axis", "Field", "image_axis", "merge_axes"]


class Field(NamedTuple):
    """First and last pixel that a unit sees: through all paths, and through the path that sees least."""

    low: float
    high: float
    min_low: float
    min_high: float

    def shifted(self, pixels: float) -> Field:
        """The field of a unit that lies so many pixels further on."""
        return Field(self.low + pixels, self.high + pixels, self.min_low + pixels, self.min_high + pixels)


def join(fields: Iterable[Field]) -> Field:
    """The field of a unit that sees several units of the layer before, as through the window of a convolution."""
    low, high, min_low, min_high = zip(*fields, strict=True)
    return Field(min(low), max(high), min(min_low), max(min_high))


def merge(fields: Sequence[Field]) -> Field:
    """The field of a unit that several branches lead to: a path takes one of them."""
    narrowest = min(fields, key=lambda field: field.min_high - field.min_low)
    whole = join(fields)
    return Field(whole.low, whole.high, narrowest.min_low, narrowest.min_high)


@dataclass(frozen=True)
class Axis:
    """The fields of all units along an axis of features.

    Units repeat in periods: unit p + q * len(fields) sees what unit p sees, q * step pixels further on. After
    convolutions and poolings the period is one unit; it is longer after an upsampling, where neighbours see the same.

    Args:
        size: units.
        step: pixels from one period to the next.
        fields: of the units of the first period.
    """

    size: int
    step: float
    fields: tuple[Field, ...]

    @property
    def jump(self) -> float:
        """Pixels from a unit to the next, on average."""
        return self.step / len(self.fields)

    @property
    def existing(self) -> tuple[Field, ...]:
        """The fields of the first period, as far as the axis reaches."""
        return self.fields[: self.size]

    @property
    def receptive_field(self) -> float:
        """Pixels that a unit sees, of the units that see most; infinite where it is all of the image."""
        return max(field.high - field.low + 1 for field in self.existing)

    @property
    def min_receptive_field(self) -> float:
        """Pixels that a unit sees through the path that sees least."""
        return min(field.min_high - field.min_low + 1 for field in self.existing)

    @property
    def start(self) -> float:
        """Centre of the first unit's field in pixels; the centre of the image's first pixel is 0.5."""
        field = self.at(0)
        return math.nan if math.isinf(field.low) else (field.low + field.high + 1) / 2

    @property
    def sees_all(self) -> bool:
        """Whether each unit sees all of the image, whatever its size."""
        return all(math.isinf(field.low) for field in self.fields)

    def pixels(self, units: int) -> float:
        """Pixels that so many units lie apart, on average; not by way of `jump`, whose rounding would add up."""
        return units * self.step / len(self.fields)

    def at(self, unit: int) -> Field:
        """The field of a unit; also before the first and after the last one, where padding lies."""
        period, phase = divmod(unit, len(self.fields))
        return self.fields[phase].shifted(period * self.step)

    def resampled(self, units: Callable[[int], Iterable[int]], size: int, period: int, step: float) -> Axis:
        """The axis of a layer each of whose units sees some units of this one.

        Args:
            units: of this axis, that a unit of the new one sees.
            size: units of the new axis.
            period: units after which the new axis repeats.
            step: pixels from one period to the next.
        """
        fields = tuple(join(map(self.at, units(unit))) for unit in range(period))
        even = all(field == fields[0].shifted(phase * step / period) for phase, field in enumerate(fields))
        return Axis(size, step / period, fields[:1]) if even else Axis(size, step, fields)

    def window(self, size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Axis:
        """The axis after a convolution or a pooling; a negative padding leaves units out."""
        period = len(self.fields) // math.gcd(len(self.fields), stride)
        taps = range(0, (kernel - 1) * dilation + 1, dilation)
        if len(self.fields) == 1:  # the units between see nothing that the outer ones do not
            taps = range(0, taps[-1] + 1, max(1, taps[-1]))
        step = self.pixels(period * stride)
        return self.resampled(lambda unit: (unit * stride - padding + tap for tap in taps), size, period, step)

    def fixed(self, field: Field) -> Axis:
        """The axis of features without this axis, all of which see one field."""
        return Axis(1, self.jump, (field,))

    def joined(self) -> Axis:
        """The axis of features that see all units, such as after a global pooling."""
        ends = {*range(min(self.size, len(self.fields))), *range(max(0, self.size - len(self.fields)), self.size)}
        return self.fixed(join(map(self.at, ends)))

    def seeing_all(self) -> Axis:
        """The same axis, each unit of which now sees all of the image; the narrowest path stays."""
        fields = (field._replace(low=-math.inf, high=math.inf) for field in self.fields)
        return replace(self, fields=tuple(fields))


def image_axis(size: int) -> Axis:
    """The axis of an image: each pixel sees itself."""
    return Axis(size, 1, (Field(0, 0, 0, 0),))


def merge_axes(axes: Sequence[Axis]) -> Axis:
    """The axis where branches meet, by a sum or a concatenation.

    Raises:
        ValueError: when their units lie differently far apart.
    """
    first = axes[0]
    if len(jumps := {axis.jump for axis in axes if axis.size > 1}) > 1:
        apart = " and ".join(f"{jump:g}" for jump in sorted(jumps))
        raise ValueError(f"merges features whose units lie differently far apart: {apart} pixels")
    period = math.lcm(*(len(axis.fields) for axis in axes))
    fields = tuple(merge([axis.at(unit) for axis in axes]) for unit in range(period))
    return Axis(first.size, first.pixels(period), fields)
