"""Figures of probabilities: the reliability diagram, and the precision-recall curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifar_resnets.evaluation.calibration import PrecisionRecall, Reliability
from cifar_resnets.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 10  # as many as there are colors
NUM_WORST = 5  # curves that are drawn where there are more classes
_RECALLS = np.linspace(0, 1, 251)  # a curve has far more thresholds than the figure has pixels


def plot_reliability(reliability: Reliability) -> Figure:
    """Draws accuracy against confidence with the gap to a calibrated network, and how many images each bin has.

    Source: Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", figure 1.
    """
    images = int(reliability.counts.sum())
    title = f"Calibration: ECE {100 * reliability.ece:.2f} % of {images:,} images"
    figure = style.new_figure(style.WIDTH, style.WIDTH, title)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    _draw_gaps(above, reliability)
    style.apply(below)
    below.stairs(100 * reliability.counts / max(images, 1), reliability.edges, fill=True, color=style.MUTED, alpha=0.6)
    below.set(xlim=(0, 1), xlabel="confidence (largest probability)", ylabel="% of images")
    below.set_ylim(bottom=0)
    return figure


def _draw_gaps(axes: Axes, reliability: Reliability) -> None:
    style.apply(axes)
    accuracy, confidence, edges = reliability.accuracy, reliability.confidence, reliability.edges
    over, under = (np.where(is_so, 1, np.nan) for is_so in (confidence > accuracy, confidence < accuracy))
    axes.stairs(accuracy, edges, fill=True, color=style.BLUE, label="accuracy")
    # neither is drawn in an empty bin, which is NaN; the second is part of the bar, whose blue stays visible below it
    for ends, name, alpha in ((over, "over", 1.0), (under, "under", 0.4)):
        color, label = style.PALETTE[name], f"gap: {name}confident"
        axes.stairs(confidence * ends, edges, baseline=accuracy, fill=True, color=color, alpha=alpha, label=label, lw=0)
    axes.hlines(accuracy, edges[:-1], edges[1:], color=style.INK, lw=1.5)
    axes.plot([0, 1], [0, 1], color=style.INK, ls="--", lw=1)
    axes.set(ylim=(0, 1), ylabel="accuracy")
    style.add_legend(axes, "upper left")


def plot_precision_recall(curves: Sequence[PrecisionRecall | None], class_names: Sequence[str]) -> Figure:
    """Draws the curves of up to ten classes, of more their mean and the worst five; None is a class without images."""
    known = {label: curve for label, curve in enumerate(curves) if curve is not None}
    areas = {label: curve.average_precision for label, curve in known.items()}
    mean = np.mean(list(areas.values())) if known else np.nan
    figure = style.new_figure(style.WIDTH, 0.9 * style.WIDTH, f"Precision and recall: mean AP {mean:.3f}")
    axes = figure.add_subplot()
    style.apply(axes)
    few = len(curves) <= MOST_CURVES
    for rank, label in enumerate(known if few else sorted(known, key=areas.__getitem__)[:NUM_WORST]):
        text = f"{style.shorten(class_names[label], 16)} {areas[label]:.3f}"
        color = f"C{label if few else rank}"  # a class of few keeps its color
        axes.plot(_RECALLS, known[label].at(_RECALLS), lw=1.2, label=text, color=color)
    if not few and known:
        mean_curve = np.mean([curve.at(_RECALLS) for curve in known.values()], axis=0)
        axes.plot(_RECALLS, mean_curve, lw=2, color=style.INK, label="mean of the classes")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    if axes.lines:
        style.add_legend(axes, "lower left", 0.85 * style.TEXT)
    return figure
