"""The figure of a learning-rate range test: the curve with marked rates, and the schedule that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.figures import style
from cifar_resnets.results.csv_files import Curve, finite
from cifar_resnets.training.lr_curve import SUGGESTIONS, divergence_start, smooth
from cifar_resnets.training.lr_search import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = dict(zip(SUGGESTIONS, (style.PALETTE[name] for name in ("s4", "s3", "s2", "s1")), strict=True))


@dataclass(frozen=True)
class Plan:
    """The schedule of a run: time in epochs, learning rate and momentum of each step (steps,), if there is momentum."""

    epochs: NDArray[np.float64]
    rates: NDArray[np.float64]
    momenta: NDArray[np.float64] | None


@dataclass(frozen=True)
class Mark:
    """A learning rate above 0 that is marked, with its label in the legend, and whether it is the one that is used."""

    rate: float
    label: str
    color: str = style.INK
    chosen: bool = True


def plot_search(search: Search, method: str, plan: Plan) -> Figure:
    """Draws the loss against the rate with the suggestions marked, and the planned rate and momentum below.

    Args:
        search: what was measured.
        method: the suggestion that is used.
        plan: the schedule of the run, with what was found.
    """
    runs = []
    for losses in search.runs:
        rates = np.array(search.rates[: len(losses)])
        runs.append((Curve(rates, np.array(losses)), Curve(rates, np.array(smooth(losses)))))
    found = {name: search.suggestion(name).value for name in SUGGESTIONS}
    marks = [
        Mark(rate, f"{name} {rate:#.3g}" + " (chosen)" * (name == method), COLORS[name], name == method)
        for name, rate in found.items()
    ]
    start = min(divergence_start(raw.x.tolist(), raw.y.tolist()) for raw, _ in runs)
    title = f"Learning-rate range test: {method} {found[method]:#.3g}"
    return plot_range_test(runs, marks, (start, search.rates[-1]), plan, title)


def plot_range_test(
    runs: Sequence[tuple[Curve, Curve]],
    marks: Sequence[Mark],
    diverged: tuple[float, float] | None = None,
    plan: Plan | None = None,
    title: str = "",
) -> Figure:
    """Draws the loss of each run against the rate, and a schedule below.

    `runs` are losses over rates above 0, as measured and smoothed, of which at least one is finite; between the rates
    `diverged`, the loss has diverged.
    """
    heights = [240] if plan is None else [240, 160]
    figure = style.new_figure(style.WIDTH, sum(heights), title)
    above, *below = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_losses(above, runs)
    if diverged is not None and diverged[0] < diverged[1]:
        above.axvspan(*diverged, color=style.MUTED, alpha=0.2, lw=0, label="diverged")
    for mark in marks:
        width, dashes = (1.6, "-") if mark.chosen else (1, "--")
        above.axvline(mark.rate, color=mark.color, label=mark.label, lw=width, ls=dashes)
    _set_limits(above, runs, marks, diverged)
    style.add_legend(above, "best", 0.85 * style.TEXT)
    if plan is not None:
        _draw_plan(below[0], plan)
    return figure


def _draw_losses(axes: Axes, runs: Sequence[tuple[Curve, Curve]]) -> None:
    for number, (raw, smoothed) in enumerate(runs):
        axes.plot(raw.x, raw.y, color=style.BLUE, lw=0.8, alpha=0.4, label="" if number else "loss")
        axes.plot(smoothed.x, smoothed.y, color=style.BLUE, lw=1.6, label="" if number else "smoothed loss")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss (nats)")


def _set_limits(
    axes: Axes, runs: Sequence[tuple[Curve, Curve]], marks: Sequence[Mark], diverged: tuple[float, float] | None
) -> None:
    rates, marked = np.concatenate([raw.x for raw, _ in runs]), [mark.rate for mark in marks]
    low, high = min([rates.min(), *(0.8 * rate for rate in marked)]), max([rates.max(), *marked, *(diverged or ())])
    axes.set_xlim(low, max(high, 1.1 * low))  # there may be a single step
    axes.set_ylim(*_loss_limits([losses for raw, _ in runs if len(losses := finite(raw.y))]))
    style.apply(axes)
    style.set_ticks(axes.xaxis, log=True)


def _loss_limits(runs: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Returns limits from below the smallest loss to somewhat above the first: a divergence would flatten the rest."""
    low = min(float(losses.min()) for losses in runs)
    first = max(float(np.median(losses[: max(1, len(losses) // 10)])) for losses in runs)
    margin = max(first - low, 0.1, 0.001 * abs(low))
    return low - 0.1 * margin, first + 0.6 * margin


def _draw_plan(axes: Axes, plan: Plan) -> None:
    style.apply(axes)
    axes.plot(plan.epochs, plan.rates, color=style.BLUE)
    for step in dict.fromkeys((0, int(plan.rates.argmax()))):
        at = (plan.epochs[step], plan.rates[step])
        axes.plot(*at, "o", color=style.ORANGE)
        axes.annotate(f"{at[1]:#.3g}", at, xytext=(6, 4), textcoords="offset points", color=style.INK)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate", color=style.BLUE)
    axes.margins(y=0.15)
    axes.set_title("Planned schedule", fontsize=style.TEXT, color=style.INK)
    if plan.momenta is not None:
        other = axes.twinx()
        style.apply(other)
        other.plot(plan.epochs, plan.momenta, color=style.ORANGE, ls="--")
        other.set_ylabel("momentum", color=style.ORANGE)
        other.set_ylim(0, 1)
        other.grid(visible=False)
        other.spines["right"].set(visible=True, color=style.MUTED)
