"""The curves of one run, or of several over each other."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from markupsafe import Markup

from cifar_resnets.figures.curves import HUGE, TINY, Series, Style, describe, drawable, plot_curves
from cifar_resnets.figures.lr_range_test import Mark, plot_range_test
from cifar_resnets.figures.render import to_svg
from cifar_resnets.results.csv_files import Curve, finite
from cifar_resnets.results.run_folder import Run


class Panel(NamedTuple):
    """A figure under a heading, which says what it shows with the unit.

    Args:
        legend: the solid curves, if there are several.
        note: on the others.
    """

    heading: str
    svg: Markup
    legend: Sequence[Series] = ()
    note: str = ""


def training_panels(runs: Sequence[Run]) -> list[Panel]:
    """Returns the panels of loss, accuracy and schedule that hold a curve."""
    return [panel for panel in (_metric(runs, "loss"), _metric(runs, "acc"), _schedule(runs)) if panel]


def _metric(runs: Sequence[Run], metric: str) -> Panel | None:
    """Returns the panel of the `loss` or of the accuracy, `acc`."""
    is_loss = metric == "loss"
    if not (series := _of_both_stages(runs, metric, 1 if is_loss else 100)):
        return None
    figure = plot_curves([series], log=is_loss, limits=None if is_loss else (0, 100))
    scale = ", logarithmic" if figure.axes[0].get_yscale() == "log" else ""
    name, heading = ("loss", f"Loss (nats{scale})") if is_loss else ("accuracy", "Accuracy (%)")
    svg = Markup(to_svg(figure, name, f"{name.capitalize()} over the epochs: {describe(series)}"))
    note = "Solid: validation images. Dashed: training images." if len(runs) > 1 else ""
    return Panel(heading, svg, _legend(runs, series), note)


def _schedule(runs: Sequence[Run]) -> Panel | None:
    rates, momenta = (
        _drawable(
            Series(run.label if len(runs) > 1 else name, run.history[tag], color)
            for color, run in enumerate(runs)
            if tag in run.history
        )
        for tag, name in (("lr", "learning rate"), ("momentum", "momentum"))
    )
    panels = [series for series in (rates, momenta) if series]
    if not panels:
        return None
    spoken = f"Schedule over the epochs: {describe([*rates, *momenta])}"
    heading = "Learning rate, and momentum below" if momenta else "Learning rate"
    return Panel(heading, Markup(to_svg(plot_curves(panels), "schedule", spoken)), _legend(runs, panels[0]))


def _of_both_stages(runs: Sequence[Run], metric: str, scale: float) -> list[Series]:
    """Returns a metric of the validation and of the training images of each run."""
    many = len(runs) > 1
    series = []
    for number, run in enumerate(runs):
        for stage, name in (("val", "validation"), ("train", "training")):
            curve = run.history.get(f"{stage}/{metric}")
            if curve is not None:
                color = number if many else 0 if stage == "val" else 1
                style: Style = "dashed" if many and stage == "train" else "line"
                label = name if not many else run.label if stage == "val" else f"{run.label}, {name}"
                series.append(Series(label, Curve(curve.x, scale * curve.y), color, style))
    return _drawable(series)


def _drawable(series: Iterable[Series]) -> list[Series]:
    shown = [replace(each, curve=drawable(each.curve)) for each in series]
    return [each for each in shown if len(finite(each.curve.y))]


def _legend(runs: Sequence[Run], series: Sequence[Series]) -> list[Series]:
    """Returns the curves that need a name: a single one does if it is of one run among several."""
    solid = [each for each in series if each.style == "line"]  # the note explains the others
    return solid if len(runs) > 1 or len(solid) > 1 else []


def search_panel(run: Run) -> Panel | None:
    """Returns the learning-rate range test, with the rate that the run was trained with."""
    pairs = [(drawable(raw), drawable(smoothed)) for raw, smoothed in run.search]
    searches = [(raw, smoothed) for raw, smoothed in pairs if len(finite(raw.y)) and raw.x.min() > 0]
    if not searches:
        return None
    rate = run.setting("model.lr")
    known = isinstance(rate, (int, float)) and not isinstance(rate, bool) and TINY < rate < HUGE
    marks = [Mark(float(rate), f"trained with {rate:g}")] if known else []
    label = "Loss over the learning rate of a range test"
    svg = Markup(to_svg(plot_range_test(searches, marks), "range test", ", ".join([label, *(m.label for m in marks)])))
    return Panel("Loss of the range test (nats)", svg)
