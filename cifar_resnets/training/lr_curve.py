"""What the curve of a learning-rate range test says: pure functions of rates and losses.

All take the rates of the steps (n,), rising, and their losses in nats (n,), finite and not smoothed. The loss of one
batch is noisy, and those of a divergence have no limit; so each function first clips them (`clipped`), then smooths
them without a lag (`centred`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
MIN_STEPS = 15  # a shorter curve says nothing
Spacing = Literal["exponential", "linear"]


def spaced_rates(min_lr: float, max_lr: float, num_steps: int, spacing: Spacing = "exponential") -> list[float]:
    """The rates of a test, from the lowest to the highest."""
    spaced = np.geomspace if spacing == "exponential" else np.linspace
    return [float(rate) for rate in spaced(min_lr, max_lr, num_steps)]


def smooth(losses: Sequence[float], factor: float = 0.9) -> list[float]:
    """Exponentially smoothed losses, of which each knows only those before it; debiased.

    Source: Kingma and Ba (2015), "Adam", section 3, for the correction of the bias towards 0.
    """
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = factor * average + (1 - factor) * loss
        smoothed.append(average / (1 - factor**step))
    return smoothed


def has_diverged(losses: Sequence[float], factor: float) -> bool:
    """Whether the smoothed loss is by now so many times its smallest value."""
    smoothed = smooth(losses)
    return smoothed[-1] > factor * min(smoothed)


def initial_level(losses: ArrayLike) -> float:
    """The loss before the rates change anything: the median of the first tenth."""
    losses = np.asarray(losses, dtype=float)
    return float(np.median(losses[: max(3, len(losses) // 10)]))


def centred(losses: ArrayLike, width: float = 0.03) -> Array:
    """Losses smoothed by a Gaussian whose standard deviation is a part of their number: no lag to either side."""
    losses = np.asarray(losses, dtype=float)
    step = np.arange(len(losses))
    weights = np.exp(-0.5 * ((step[:, None] - step) / max(1.5, width * len(losses))) ** 2)
    mean: Array = weights @ losses / weights.sum(axis=1)
    return mean


def clipped(losses: ArrayLike) -> Array:
    """Losses cut off a little above the initial level: how far a divergence goes says nothing."""
    losses = np.asarray(losses, dtype=float)
    level = initial_level(losses)
    limit: Array = np.minimum(losses, level + 0.25 * max(level - centred(losses, 0.02).min(), 0.0))
    return limit


def depths(losses: ArrayLike) -> Array:
    """How far the loss has fallen below its initial level in each step, as a part of its deepest fall: at most 1."""
    curve = centred(clipped(losses))
    fall: Array = initial_level(losses) - curve
    return fall / max(float(fall.max()), 1e-12)


def valley(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The centre of gravity of the valley between the fall of the loss and its rise, on the logarithm of the rate.

    Each step weighs as much as the square of its depth. No single loss decides, so that the centre hardly depends
    on the noise; a short instability within the valley, as residual networks have it, does not end it.
    """
    return _centre(rates, np.clip(depths(losses), 0, None) ** 2)


def steep(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Where the loss falls fastest over the logarithm of the rate, on the way to its minimum.

    The centre of gravity of the slope's fourth power, for the same reason.
    """
    slopes = np.gradient(-centred(clipped(losses), 0.05), np.log(rates))
    before = np.arange(len(slopes)) <= np.argmax(depths(losses))
    return _centre(rates, np.where(before, np.clip(slopes, 0, None), 0) ** 4)


def minimum(rates: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate with the smallest loss."""
    return float(rates[int(np.argmax(depths(losses)))]) / 10


def slide(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The lower end of an interval that slides down from the highest rate until the loss no longer rises across it.

    The interval is 15 % of the steps wide. Departure from the interval slide rule of other libraries: that compares the
    slopes at both ends with a fixed threshold, which the noise of a batch's loss exceeds anywhere.
    """
    curve = depths(losses)
    width = max(2, round(0.15 * len(curve)))
    start = int(np.argmax(curve))  # to the left of the minimum nothing rises
    low = len(curve) - 1 - width
    while low > max(0, start - width) and curve[low + width] < max(curve[low], 0.5):
        low -= 1
    return float(rates[max(low, 0)])


SUGGESTIONS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "valley": valley,
    "steep": steep,
    "minimum": minimum,
    "slide": slide,
}


def start_of_descent(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate from which on the loss falls clearly: where a twentieth of the steps has fallen by a fifth of all."""
    deep = depths(losses) >= 0.2
    window = max(2, len(deep) // 20)
    lasting = np.convolve(deep, np.ones(window), mode="valid") == window
    return float(rates[int(np.argmax(lasting))])


def divergence_start(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate from which on the loss stays above its initial level; the last rate where it never does."""
    below = np.flatnonzero(depths(losses) > 0)
    return float(rates[min(int(below[-1]) + 1, len(losses) - 1) if len(below) else 0])


def find_problem(rates: Sequence[float], losses: Sequence[float]) -> str | None:
    """Why a curve gives no suggestion that can be trusted, and what to do; None where it gives one."""
    if len(losses) < MIN_STEPS:
        return f"the loss diverged after {len(losses)} steps, try a lower min_lr"
    level, curve = initial_level(losses), centred(clipped(losses))
    lowest = int(np.argmin(curve))
    fall = level - float(curve[lowest])
    clear = max(6.5 * _noise(losses, lowest), 0.01 * abs(level))
    rise = float(np.mean(losses[-max(3, len(losses) // 10) :])) - level
    if rise > clear and (fall < clear or lowest < len(losses) // 10):
        return f"the loss only rises from {rates[0]:g} on, try a lower min_lr"
    if fall < clear:
        return f"the loss is flat or too noisy (it falls by {max(fall, 0):.2g} of {level:.3g}), try more num_steps"
    if np.mean(curve[-max(1, len(curve) // 20) :]) < level - 0.9 * fall:
        return f"the loss does not rise up to the highest rate, {rates[-1]:g}, try a higher max_lr"
    return None


def _centre(rates: Sequence[float], weights: Array) -> float:
    if not weights.any():
        return float(rates[0])
    return math.exp(float(np.average(np.log(rates), weights=weights)))


def _noise(losses: Sequence[float], lowest: int) -> float:
    """Standard error of the smoothed curve, from the steps until its minimum: a divergence is no noise."""
    before = np.asarray(losses[: max(lowest + 1, len(losses) // 3)], dtype=float)
    # second differences leave out the trend, their median single instabilities
    deviation = float(np.median(np.abs(np.diff(before, 2)))) / 0.6745 / math.sqrt(6)
    return deviation / math.sqrt(2 * math.sqrt(math.pi) * max(1.5, 0.03 * len(losses)))
