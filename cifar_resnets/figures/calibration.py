"""Figures of probabilities: the reliability diagram, and the precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifar_resnets.evaluation.calibration import Floats, PrecisionRecall, Reliability
from cifar_resnets.figures.figure_layout import HEADER, TEXT, WIDTH, blank, place, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 10  # as many as there are colours
NUM_WORST = 5  # curves that are drawn where there are more classes
_RECALLS = np.linspace(0, 1, 251)  # a curve has far more thresholds than the picture has pixels


def plot_reliability(reliability: Reliability) -> Figure:
    """Draws accuracy against confidence with the gap to a calibrated network, and how many images each bin has.

    Args:
        reliability: see there.
    """
    images = int(reliability.counts.sum())
    figure = blank(WIDTH, 690, f"Calibration: ECE {100 * reliability.ece:.2f} % of {images:,} images")
    above, below = place(figure, 95, HEADER, WIDTH - 125, 400), place(figure, 95, 480, WIDTH - 125, 140)
    _draw_gaps(above, reliability)
    below.stairs(100 * reliability.counts / max(images, 1), reliability.edges, fill=True, color="tab:gray")
    below.set_xlabel("confidence (largest probability)", size=TEXT)
    below.set_ylabel("% of images", size=TEXT)
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.set_xlim(0, 1)
    above.tick_params(labelbottom=False)
    return figure


def _draw_gaps(axes: Axes, reliability: Reliability) -> None:
    accuracy, confidence, edges = reliability.accuracy, reliability.confidence, reliability.edges
    over, under = (np.where(is_so, 1, np.nan) for is_so in (confidence > accuracy, confidence < accuracy))
    axes.stairs(accuracy, edges, fill=True, color="tab:blue", label="accuracy")
    # neither is drawn in an empty bin, which is NaN
    for ends, color, name in ((over, "lightcoral", "overconfident"), (under, "tab:orange", "underconfident")):
        axes.stairs(confidence * ends, edges, baseline=accuracy, fill=True, color=color, label=f"gap: {name}")
    axes.plot([0, 1], [0, 1], color="black", ls="--", lw=2)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy", size=TEXT)
    axes.legend(fontsize=TEXT, loc="upper left")


def plot_precision_recall(curves: Sequence[PrecisionRecall | None], class_names: Sequence[str]) -> Figure:
    """Draws the curves of up to ten classes; of more, the mean over the classes and the worst five.

    Args:
        curves: of each class; None for a class without images.
        class_names: names of the classes.
    """
    known = {label: curve for label, curve in enumerate(curves) if curve is not None}
    areas = {label: curve.average_precision for label, curve in known.items()}
    mean = np.mean(list(areas.values())) if known else np.nan
    figure = blank(WIDTH, 620, f"Precision and recall: mean AP {mean:.3f}")
    axes = place(figure, 85, HEADER, WIDTH - 115, 490)
    few = len(curves) <= MOST_CURVES
    for rank, label in enumerate(known if few else sorted(known, key=areas.__getitem__)[:NUM_WORST]):
        text = f"{shown(class_names[label], 16)} {areas[label]:.3f}"
        color = f"C{label if few else rank}"  # a class of few keeps its colour
        axes.plot(_RECALLS, known[label].at(_RECALLS), lw=2.5, label=text, color=color)
    if not few and known:
        axes.plot(_RECALLS, _mean_curve(known), lw=4, color="black", label="mean of the classes")
    _finish(axes)
    return figure


def _mean_curve(curves: Mapping[int, PrecisionRecall]) -> Floats:
    return np.asarray(np.mean([curve.at(_RECALLS) for curve in curves.values()], axis=0))


def _finish(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall", size=TEXT)
    axes.set_ylabel("precision", size=TEXT)
    if axes.lines:
        legend = axes.legend(fontsize=0.85 * TEXT, loc="lower left")
        for text in legend.get_texts():
            text.set_parse_math(False)
