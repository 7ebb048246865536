"""What the curves of one or several range tests say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cifar_resnets.training.lr_curve import MIN_STEPS, SUGGESTIONS, find_problem, smooth, start_of_descent

Method = Literal["valley", "steep", "minimum", "slide"]  # the names of SUGGESTIONS
COLUMNS = ("run", "step", "lr", "loss", "smoothed_loss")
MAX_SPREAD = 3.0  # largest suggestion of several runs divided by the smallest, from which on they do not agree


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, the geometric mean over the runs, and the smallest and largest of them."""

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
        """Whether there are suggestions, and something to be drawn."""
        return min(len(losses) for losses in self.runs) >= MIN_STEPS

    def suggestion(self, method: str) -> Suggestion:
        """The learning rate that a method suggests, one of `SUGGESTIONS`."""
        values = [SUGGESTIONS[method](self.rates[: len(losses)], losses) for losses in self.runs]
        return _combined(values)

    @property
    def start(self) -> float:
        """The rate from which on the loss falls clearly."""
        return _combined([start_of_descent(self.rates[: len(losses)], losses) for losses in self.runs]).value

    def problem(self, method: str) -> str | None:
        """Why no suggestion can be trusted, and what to do; None where it can."""
        for losses in self.runs:
            if problem := find_problem(self.rates[: len(losses)], losses):
                return problem
        suggestion = self.suggestion(method)
        if suggestion.high > MAX_SPREAD * suggestion.low:
            spread = f"{suggestion.low:.2g} to {suggestion.high:.2g} over {len(self.runs)} runs"
            return f"the runs do not agree ({spread}), try more num_steps"
        return None

    def rows(self) -> list[dict[str, float]]:
        """The numbers, a row a step."""
        return [
            dict(zip(COLUMNS, (run, step, lr, loss, smoothed), strict=True))
            for run, losses in enumerate(self.runs)
            for step, (lr, loss, smoothed) in enumerate(zip(self.rates, losses, smooth(losses), strict=False))
        ]


def _combined(values: Sequence[float]) -> Suggestion:
    mean = three_digits(statistics.geometric_mean(values))
    return Suggestion(mean, float(np.min(values)), float(np.max(values)))


def three_digits(rate: float) -> float:
    """A rate as it is shown, so that a user who types what he sees gets the same run."""
    return float(f"{rate:.3g}")
