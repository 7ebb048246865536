"""The figure of a learning-rate search: the curve with its suggestions, and the schedule that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.training.lr_curve import SUGGESTIONS, divergence_start, smooth
from cifar_resnets.training.lr_search import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = dict(zip(SUGGESTIONS, ("tab:red", "tab:purple", "tab:green", "tab:orange"), strict=True))


@dataclass(frozen=True)
class Plan:
    """The schedule of a run.

    Args:
        epochs: when each step is taken, in epochs (steps,).
        rates: its learning rate (steps,).
        momenta: its momentum (steps,), or None where the optimizer has none.
    """

    epochs: NDArray[np.float64]
    rates: NDArray[np.float64]
    momenta: NDArray[np.float64] | None


def plot_search(search: Search, method: str, plan: Plan) -> Figure:
    """Draws the loss against the rate with the suggestions marked, and the planned rate and momentum below.

    Args:
        search: what was measured.
        method: whose suggestion was asked for.
        plan: the schedule of the run, with what was found.
    """
    from matplotlib.figure import Figure  # half a second of import

    figure = Figure(figsize=(5.6, 6.2), layout="constrained", dpi=140)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _draw_curves(above, search)
    _mark_suggestions(above, search, method)
    _draw_plan(below, plan)
    return figure


def _draw_curves(axes: Axes, search: Search) -> None:
    for run, losses in enumerate(search.runs):
        rates = search.rates[: len(losses)]
        axes.plot(rates, losses, color="tab:blue", lw=0.8, alpha=0.35, label="loss" if run == 0 else None)
        axes.plot(rates, smooth(losses), color="tab:blue", lw=1.8, label="smoothed loss" if run == 0 else None)
    diverged = [divergence_start(search.rates[: len(losses)], losses) for losses in search.runs]
    if min(diverged) < search.rates[-1]:
        axes.axvspan(min(diverged), search.rates[-1], color="tab:gray", alpha=0.2, lw=0, label="diverged")
    axes.set_xscale("log")
    lowest = min(search.suggestion(name).value for name in COLORS)  # a tenth of a low minimum may lie outside
    axes.set_xlim(min(search.rates[0], 0.8 * lowest), search.rates[-1])
    axes.set_ylim(*_limits(search.runs))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.3)


def _limits(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """From below the smallest loss to somewhat above the first: a divergence would flatten the rest."""
    low = min(min(losses) for losses in runs)
    first = max(float(np.median(losses[: max(1, len(losses) // 10)])) for losses in runs)
    room = max(first - low, 0.1)
    return low - 0.1 * room, first + 0.6 * room


def _mark_suggestions(axes: Axes, search: Search, method: str) -> None:
    for name, color in COLORS.items():
        rate, chosen = search.suggestion(name).value, name == method
        label = f"{name} {rate:#.3g}" + (" (chosen)" if chosen else "")
        axes.axvline(rate, color=color, lw=2.2 if chosen else 1.2, ls="-" if chosen else "--", label=label)
    axes.legend(fontsize=7.5, loc="best")
    axes.set_title(f"Learning-rate range test: {method} {search.suggestion(method).value:#.3g}", fontsize=11)


def _draw_plan(axes: Axes, plan: Plan) -> None:
    axes.plot(plan.epochs, plan.rates, color="tab:blue", label="learning rate")
    for step in dict.fromkeys((0, int(plan.rates.argmax()))):
        at = (plan.epochs[step], plan.rates[step])
        axes.plot(*at, "o", color="tab:red")
        axes.annotate(f"{at[1]:#.3g}", at, xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate", color="tab:blue")
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.set_title("Planned schedule", fontsize=11)
    if plan.momenta is not None:
        other = axes.twinx()
        other.plot(plan.epochs, plan.momenta, color="tab:orange", ls="--")
        other.set_ylabel("momentum", color="tab:orange")
        other.set_ylim(0, 1)
