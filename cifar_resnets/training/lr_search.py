"""The result of a learning-rate search: suggestions from one or several range tests."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cifar_resnets.training.lr_curve import MIN_STEPS, SUGGESTIONS, find_problem, smooth, start_of_descent

Method = Literal["valley", "steep", "minimum", "slide"]  # the names of SUGGESTIONS
COLUMNS = ("run", "step", "lr", "loss", "smoothed_loss")
MAX_SPREAD = 3.0  # largest suggestion divided by the smallest; runs with a larger ratio do not agree


@dataclass(frozen=True)
class Suggestion:
    """A suggested learning rate: the geometric mean over the runs, the smallest, and the largest."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Search:
    """The losses of several range tests.

    Args:
        rates: learning rates of the steps.
        runs: for each test the losses in nats, fewer than rates where it diverged.
    """

    rates: Sequence[float]
    runs: Sequence[Sequence[float]]

    @property
    def is_long_enough(self) -> bool:
        """Whether each run is long enough to suggest a rate and to be drawn."""
        return min(len(losses) for losses in self.runs) >= MIN_STEPS

    def suggestion(self, method: str) -> Suggestion:
        """Returns the learning rate that a method of `SUGGESTIONS` suggests."""
        values = [SUGGESTIONS[method](self.rates[: len(losses)], losses) for losses in self.runs]
        return _combined(values)

    @property
    def start(self) -> float:
        """The rate at which the loss begins to fall clearly."""
        return _combined([start_of_descent(self.rates[: len(losses)], losses) for losses in self.runs]).value

    def problem(self, method: str) -> str | None:
        """Explains why a suggestion cannot be trusted, and what to do; returns None if it can."""
        for losses in self.runs:
            if problem := find_problem(self.rates[: len(losses)], losses):
                return problem
        suggestion = self.suggestion(method)
        if suggestion.high > MAX_SPREAD * suggestion.low:
            spread = f"{suggestion.low:.2g} to {suggestion.high:.2g} over {len(self.runs)} runs"
            return f"the runs do not agree ({spread}), try more num_steps"
        return None

    def rows(self) -> list[dict[str, float]]:
        """Returns a row for each step of each run, with the columns `COLUMNS`."""
        return [
            dict(zip(COLUMNS, (run, step, lr, loss, smoothed), strict=True))
            for run, losses in enumerate(self.runs)
            for step, (lr, loss, smoothed) in enumerate(zip(self.rates, losses, smooth(losses), strict=False))
        ]


def _combined(values: Sequence[float]) -> Suggestion:
    mean = three_digits(statistics.geometric_mean(values))
    return Suggestion(mean, float(np.min(values)), float(np.max(values)))


def three_digits(rate: float) -> float:
    """Rounds a rate to the three digits that are displayed, so that typing them repeats the run exactly."""
    return float(f"{rate:.3g}")
