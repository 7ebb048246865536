"""Analyses the curve of a learning-rate range test: pure functions of rates and losses.

All take the rates of the steps (n,), ascending, and their losses in nats (n,), finite and not smoothed. The loss of a
batch is noisy, and a diverging loss unbounded; so each function first clips the losses (`clipped`), then smooths them
without a lag (`centred`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
MIN_STEPS = 15  # a shorter curve gives no suggestion
Spacing = Literal["exponential", "linear"]


def spaced_rates(min_lr: float, max_lr: float, num_steps: int, spacing: Spacing = "exponential") -> list[float]:
    """Returns the rates of a test, from the lowest to the highest."""
    spaced = np.geomspace if spacing == "exponential" else np.linspace
    return [float(rate) for rate in spaced(min_lr, max_lr, num_steps)]


def smooth(losses: Sequence[float], factor: float = 0.9) -> list[float]:
    """Computes the exponential moving average of losses, with the bias towards 0 corrected.

    Source: Kingma and Ba (2015), "Adam", section 3, for the correction of the bias.
    """
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = factor * average + (1 - factor) * loss
        smoothed.append(average / (1 - factor**step))
    return smoothed


def has_diverged(losses: Sequence[float], factor: float) -> bool:
    """Returns whether the last smoothed loss exceeds the smallest one times a factor."""
    smoothed = smooth(losses)
    return smoothed[-1] > factor * min(smoothed)


def initial_level(losses: ArrayLike) -> float:
    """Returns the loss before training has an effect: the median of the first tenth of the steps."""
    losses = np.asarray(losses, dtype=float)
    return float(np.median(losses[: max(3, len(losses) // 10)]))


def centred(losses: ArrayLike, width: float = 0.03) -> Array:
    """Smooths losses with a Gaussian without a lag; `width` is its standard deviation as a fraction of the steps."""
    losses = np.asarray(losses, dtype=float)
    step = np.arange(len(losses))
    weights = np.exp(-0.5 * ((step[:, None] - step) / max(1.5, width * len(losses))) ** 2)
    mean: Array = weights @ losses / weights.sum(axis=1)
    return mean


def clipped(losses: ArrayLike) -> Array:
    """Limits losses to a little above the initial level: the height of a divergence carries no information."""
    losses = np.asarray(losses, dtype=float)
    level = initial_level(losses)
    limit: Array = np.minimum(losses, level + 0.25 * max(level - centred(losses, 0.02).min(), 0.0))
    return limit


def depths(losses: ArrayLike) -> Array:
    """Returns the fall of the loss below its initial level in each step, divided by the deepest fall; at most 1."""
    curve = centred(clipped(losses))
    fall: Array = initial_level(losses) - curve
    return fall / max(float(fall.max()), 1e-12)


def valley(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Suggests the centre of gravity of the valley between fall and rise of the loss, over the logarithm of the rate.

    Each step is weighted by the square of its depth. No single loss decides, so that the centre hardly depends on
    noise; a short instability within the valley, common in residual networks, does not end it.
    """
    return _centre(rates, np.clip(depths(losses), 0, None) ** 2)


def steep(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Suggests the rate at which the loss falls fastest over the logarithm of the rate, before its minimum.

    This is the centre of gravity of the slope's fourth power, which hardly depends on noise.
    """
    slopes = np.gradient(-centred(clipped(losses), 0.05), np.log(rates))
    before = np.arange(len(slopes)) <= np.argmax(depths(losses))
    return _centre(rates, np.where(before, np.clip(slopes, 0, None), 0) ** 4)


def minimum(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Suggests a tenth of the rate with the smallest loss."""
    return float(rates[int(np.argmax(depths(losses)))]) / 10


def slide(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Suggests the lower end of an interval that slides down from the highest rate until the loss does not rise in it.

    The interval is 15 % of the steps wide. Departure from the interval slide rule of other libraries: that compares the
    slopes at both ends with a fixed threshold, which the noise of a batch's loss exceeds anywhere.
    """
    curve = depths(losses)
    width = max(2, round(0.15 * len(curve)))
    start = int(np.argmax(curve))  # the loss does not rise before its minimum
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
    """Returns the first rate from which a twentieth of the steps has a depth of at least a fifth."""
    deep = depths(losses) >= 0.2
    window = max(2, len(deep) // 20)
    lasting = np.convolve(deep, np.ones(window), mode="valid") == window
    return float(rates[int(np.argmax(lasting))])


def divergence_start(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Returns the rate from which the loss stays above its initial level; the last rate if it never does."""
    below = np.flatnonzero(depths(losses) > 0)
    return float(rates[min(int(below[-1]) + 1, len(losses) - 1) if len(below) else 0])


def find_problem(rates: Sequence[float], losses: Sequence[float]) -> str | None:
    """Explains why the suggestions of a curve cannot be trusted, and what to do; returns None if they can."""
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
    """Returns the standard error of the smoothed curve, from the steps up to its minimum, without a divergence."""
    before = np.asarray(losses[: max(lowest + 1, len(losses) // 3)], dtype=float)
    # second differences remove the trend, and their median ignores single instabilities
    deviation = float(np.median(np.abs(np.diff(before, 2)))) / 0.6745 / math.sqrt(6)
    return deviation / math.sqrt(2 * math.sqrt(math.pi) * max(1.5, 0.03 * len(losses)))
