"""Receptive fields of units along one axis of the image.

All positions are in pixels of an image without borders: a field may extend beyond the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple


class Field(NamedTuple):
    """First and last pixel that a unit sees: over all paths, and through the path with the smallest field."""

    low: float
    high: float
    min_low: float
    min_high: float

    def shifted(self, pixels: float) -> Field:
        """Shifts the field by a number of pixels."""
        return Field(self.low + pixels, self.high + pixels, self.min_low + pixels, self.min_high + pixels)


def join(fields: Iterable[Field]) -> Field:
    """Returns the field of a unit that sees several units of the layer before, as in a convolution."""
    low, high, min_low, min_high = zip(*fields, strict=True)
    return Field(min(low), max(high), min(min_low), max(min_high))


def merge(fields: Sequence[Field]) -> Field:
    """Returns the field of a unit at which several branches meet: each path takes one of them."""
    narrowest = min(fields, key=lambda field: field.min_high - field.min_low)
    whole = join(fields)
    return Field(whole.low, whole.high, narrowest.min_low, narrowest.min_high)


@dataclass(frozen=True)
class Axis:
    """The fields of all units along an axis of features.

    Fields are periodic: that of unit p + q * len(fields) is that of unit p, shifted by q * step pixels. After
    convolutions and poolings the period is one unit; it is longer after an upsampling, where neighbours share a field.

    Args:
        size: number of units.
        step: pixels from one period to the next.
        fields: of the units in the first period.
    """

    size: int
    step: float
    fields: tuple[Field, ...]

    @property
    def jump(self) -> float:
        """Average distance of neighbouring units in pixels."""
        return self.step / len(self.fields)

    @property
    def existing(self) -> tuple[Field, ...]:
        """The fields of the first period, without units beyond the end of the axis."""
        return self.fields[: self.size]

    @property
    def receptive_field(self) -> float:
        """Size of the largest field of a unit in pixels; infinite if it is the whole image."""
        return max(field.high - field.low + 1 for field in self.existing)

    @property
    def min_receptive_field(self) -> float:
        """Size of the smallest field of a unit through a single path, in pixels."""
        return min(field.min_high - field.min_low + 1 for field in self.existing)

    @property
    def start(self) -> float:
        """Centre of the first unit's field in pixels; the centre of the image's first pixel is 0.5."""
        field = self.at(0)
        return math.nan if math.isinf(field.low) else (field.low + field.high + 1) / 2

    @property
    def sees_all(self) -> bool:
        """Whether each unit sees the whole image, whatever its size."""
        return all(math.isinf(field.low) for field in self.fields)

    def pixels(self, units: int) -> float:
        """Returns the average distance of units in pixels; without `jump`, whose rounding errors would add up."""
        return units * self.step / len(self.fields)

    def at(self, unit: int) -> Field:
        """Returns the field of a unit, which may lie in the padding before the first or after the last one."""
        period, phase = divmod(unit, len(self.fields))
        return self.fields[phase].shifted(period * self.step)

    def resampled(self, units: Callable[[int], Iterable[int]], size: int, period: int, step: float) -> Axis:
        """Returns the axis of a layer whose units see units of this one.

        Args:
            units: maps a unit of the new axis to the units of this axis that it sees.
            size: number of units of the new axis.
            period: number of units after which the fields of the new axis repeat.
            step: pixels from one period to the next.
        """
        fields = tuple(join(map(self.at, units(unit))) for unit in range(period))
        even = all(field == fields[0].shifted(phase * step / period) for phase, field in enumerate(fields))
        return Axis(size, step / period, fields[:1]) if even else Axis(size, step, fields)

    def window(self, size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Axis:
        """Returns the axis after a convolution or a pooling; a negative padding leaves units out."""
        period = len(self.fields) // math.gcd(len(self.fields), stride)
        taps = range(0, (kernel - 1) * dilation + 1, dilation)
        if len(self.fields) == 1:  # the outer taps alone decide the field
            taps = range(0, taps[-1] + 1, max(1, taps[-1]))
        step = self.pixels(period * stride)
        return self.resampled(lambda unit: (unit * stride - padding + tap for tap in taps), size, period, step)

    def fixed(self, field: Field) -> Axis:
        """Returns the axis of features that do not extend along it, and all see one field."""
        return Axis(1, self.jump, (field,))

    def joined(self) -> Axis:
        """Returns the axis of features that see all units, as after a global pooling."""
        ends = {*range(min(self.size, len(self.fields))), *range(max(0, self.size - len(self.fields)), self.size)}
        return self.fixed(join(map(self.at, ends)))

    def seeing_all(self) -> Axis:
        """Returns this axis with fields of the whole image; the smallest path stays."""
        fields = (field._replace(low=-math.inf, high=math.inf) for field in self.fields)
        return replace(self, fields=tuple(fields))


def image_axis(size: int) -> Axis:
    """Returns the axis of an image: each pixel sees itself."""
    return Axis(size, 1, (Field(0, 0, 0, 0),))


def merge_axes(axes: Sequence[Axis]) -> Axis:
    """Returns the axis after a sum or a concatenation of branches.

    Raises:
        ValueError: when their jumps differ.
    """
    first = axes[0]
    if len(jumps := {axis.jump for axis in axes if axis.size > 1}) > 1:
        apart = " and ".join(f"{jump:g}" for jump in sorted(jumps))
        raise ValueError(f"merges features whose units lie differently far apart: {apart} pixels")
    period = math.lcm(*(len(axis.fields) for axis in axes))
    fields = tuple(merge([axis.at(unit) for axis in axes]) for unit in range(period))
    return Axis(first.size, first.pixels(period), fields)
