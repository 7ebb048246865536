"""The curves of one run, or of several over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifar_resnets.figures.charts import Chart, Series, Style, line_chart
from cifar_resnets.results.csv_files import Curve, finite
from cifar_resnets.results.run_folder import Run


@dataclass(frozen=True)
class Panel:
    """Charts under one heading.

    Args:
        heading: what they show, with the unit.
        charts: from top to bottom.
        note: what a reader should know.
        is_named: whether a single curve has a name in the legend too, for it is of one run among several.
    """

    heading: str
    charts: list[Chart]
    note: str = ""
    is_named: bool = False

    @property
    def legend(self) -> list[Series]:
        """What has to be told apart in the first chart; nothing where there is one curve."""
        solid = [each for each in self.charts[0].legend if each.style == "line"]  # the note explains the others
        return solid if self.is_named or len(solid) > 1 else []


def training_panels(runs: Sequence[Run]) -> list[Panel]:
    """Loss, accuracy, and the schedule; a panel without any figure is left out."""
    return [panel for panel in (_losses(runs), _accuracies(runs), _schedule(runs)) if panel]


def _losses(runs: Sequence[Run]) -> Panel | None:
    chart = line_chart(_both(runs, "loss", 1), "Loss over the epochs")
    if chart is None:
        return None
    scale = ", logarithmic" if chart.log else ""
    return Panel(f"Loss (nats{scale})", [chart], _code(runs), len(runs) > 1)


def _accuracies(runs: Sequence[Run]) -> Panel | None:
    chart = line_chart(_both(runs, "acc", 100), "Accuracy over the epochs", log_y=False, limits=(0, 100))
    return Panel("Accuracy (%)", [chart], _code(runs), len(runs) > 1) if chart else None


def _schedule(runs: Sequence[Run]) -> Panel | None:
    rates, momenta = (
        [
            Series(_name(runs, run, name), run.history[tag], color)
            for color, run in enumerate(runs)
            if tag in run.history
        ]
        for tag, name in (("lr", "learning rate"), ("momentum", "momentum"))
    )
    charts = [
        line_chart(rates, "Learning rate over the epochs", height=150, log_y=False, x_label="" if momenta else "epoch"),
        line_chart(momenta, "Momentum over the epochs", height=96, log_y=False),
    ]
    drawn = [chart for chart in charts if chart]
    heading = "Learning rate, and momentum below" if momenta else "Learning rate"
    return Panel(heading, drawn, is_named=len(runs) > 1) if drawn else None


def _both(runs: Sequence[Run], figure: str, scale: float) -> list[Series]:
    """A figure of the training and of the validation images."""
    many = len(runs) > 1
    series = []
    for number, run in enumerate(runs):
        for stage, name in (("val", "validation"), ("train", "training")):
            curve = run.history.get(f"{stage}/{figure}")
            if curve is not None:
                color = number if many else 0 if stage == "val" else 1
                style: Style = "dashed" if many and stage == "train" else "line"
                label = name if not many else run.label if stage == "val" else f"{run.label}, {name}"
                series.append(Series(label, Curve(curve.x, scale * curve.y), color, style))
    return series


def _code(runs: Sequence[Run]) -> str:
    return "Solid: validation images. Dashed: training images." if len(runs) > 1 else ""


def _name(runs: Sequence[Run], run: Run, name: str) -> str:
    return run.label if len(runs) > 1 else name


def search_panel(run: Run) -> Panel | None:
    """The learning-rate range test, with the rate that the run was trained with."""
    raw = [Series("loss", losses, 0, "faint") for losses, _ in run.search]
    smoothed = [Series("smoothed loss", losses, 0) for _, losses in run.search]
    rate = run.setting("model.lr")
    known = isinstance(rate, (int, float)) and not isinstance(rate, bool) and math.isfinite(rate) and rate > 0
    chart = line_chart(
        [*raw, *smoothed],
        "Loss over the learning rate of a range test",
        x_label="learning rate",
        log_x=True,
        log_y=False,
        values=_telling([losses for losses, _ in run.search]),
        mark=(float(rate), f"trained with {rate:g}") if known else None,
    )
    return Panel("Loss of the range test (nats)", [chart], "Thin: as measured. Thick: smoothed.") if chart else None


def _telling(curves: Sequence[Curve]) -> list[float]:
    """From the smallest loss to somewhat above the first: a divergence would flatten the rest."""
    known = [values for curve in curves if len(values := finite(curve.y))]
    if not known:
        return []
    low = min(float(values.min()) for values in known)
    first = max(float(np.median(values[: max(1, len(values) // 10)])) for values in known)
    room = max(first - low, 0.1)
    return [low - 0.1 * room, first + 0.6 * room]
