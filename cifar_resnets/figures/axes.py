"""The axes of a chart: where a value lies, and which values are written beside the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MANY_DECADES = 2.5  # from here on a logarithmic axis names powers of ten only
SAME = 1e-4  # part of a value, below which a difference is not drawn
TINY, HUGE = 1e-100, 1e100  # beyond which a range may under- or overflow
ROOM = 24.0  # pixels from one value beside an axis to the next


@dataclass(frozen=True)
class Axis:
    """A range of values, drawn between two positions.

    Args:
        low, high: values at the ends, `low < high`; above 0 on a logarithmic axis.
        start, end: their positions in pixels.
        log: whether equal ratios are equally far apart.
        least_step: from one value beside the axis to the next, unless it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    least_step: float = 0.0

    def at(self, value: float) -> float:
        """The position of a value, at most twice the range beyond an end."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self._floor)))
        part = (value - low) / (high - low)
        return self.start + min(max(part, -2.0), 3.0) * (self.end - self.start)

    @property
    def _floor(self) -> float:
        return self.low if self.log else -math.inf

    def ticks(self) -> list[float]:
        """Round values within the range, five or fewer where there is little room."""
        number = min(5.0, abs(self.end - self.start) / ROOM)
        ticks = (
            _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high, number, self.least_step)
        )
        return ticks or [self.low, self.high]


def axis_over(
    values: Iterable[float], start: float, end: float, log: bool = False, whole: tuple[float, float] | None = None
) -> Axis:
    """An axis over some values, with a little room where they are all the same.

    Args:
        values: what is to be shown; those that are not finite, or nearly so, are passed over.
        start: position of the smallest in pixels.
        end: position of the largest.
        log: whether it is to be logarithmic, as far as all values are above 0.
        whole: limits that the axis does not leave, for example 0 and 100 per cent.
    """
    known = _drawable(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    if log and low > 0:
        room = max((high / low) ** 0.04, 1.05)
        return Axis(low / room, high * room, start, end, log=True)
    nearly_same = high - low < SAME * max(abs(low), abs(high))  # rounding, as a momentum that does not change
    room = (high - low) * 0.04 if high > low and not nearly_same else abs(high) * 0.1 or 1.0
    least, most = whole or (-math.inf, math.inf)
    low, high = max(low - room, least), min(high + room, most)
    return Axis(low, high if high > low else low + 1.0, start, end)


def spans_decades(values: Iterable[float]) -> bool:
    """Whether values are told apart only on a logarithmic axis."""
    known = _drawable(values)
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def _drawable(values: Iterable[float]) -> list[float]:
    """The values that an axis can reach over; NaN is less than nothing."""
    return [0.0 if abs(value) < TINY else value for value in values if abs(value) < HUGE]


def tick_text(value: float) -> str:
    """A value as it stands beside an axis."""
    if value and not 1e-4 < abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.6g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.6g}"


def _linear_ticks(low: float, high: float, number: float, least: float) -> list[float]:
    rough = max((high - low) / number, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, round(decades / 6))
    factors = (1,) if decades > MANY_DECADES else (1, 2, 5) if decades > 0.5 else range(1, 10)
    ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
