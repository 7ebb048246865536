"""The figure of a learning-rate search: what its axes hold, not how they look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from cifar_resnets.figures.lr_range_test import Plan, plot_search
from cifar_resnets.training.lr_curve import SUGGESTIONS, divergence_start, smooth
from cifar_resnets.training.lr_search import Search

RATES = np.geomspace(1e-4, 10, 100).tolist()
LEVEL = 2.3


def bowl(factor: float = 1.0) -> list[float]:
    """A curve that falls around 0.02, rises around 0.5, both times a factor, and diverges to 1e4."""
    decades = np.log10(np.array(RATES) / factor)
    losses = LEVEL - expit((decades + 1.7) / 0.15) + np.exp((decades + 0.3) / 0.1)
    return np.minimum(losses, 1e4).tolist()


SEARCH = Search(RATES, [bowl(), bowl(1.4)[:80]])
EPOCHS = np.arange(80) / 8
PLAN = Plan(
    EPOCHS, np.interp(EPOCHS, [0, 4, 10], [0.0123, 0.345, 0]), np.interp(EPOCHS, [0, 4, 10], [0.95, 0.85, 0.95])
)


@pytest.fixture(scope="module")
def figure() -> Figure:
    return plot_search(SEARCH, "steep", PLAN)


def upright_lines(axes: Axes) -> dict[str, float]:
    """Labels and places of the lines that are drawn from the bottom of the axes to its top."""
    lines = [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    return {line.get_label(): line.get_xdata()[0] for line in lines}


def shaded(axes: Axes) -> tuple[float, float]:
    [patch] = axes.patches
    left, right = patch.get_extents().transformed(axes.transData.inverted()).intervalx
    return left, right


def test_the_rates_are_on_a_logarithmic_axis(figure):
    above = figure.axes[0]
    assert above.get_xscale() == "log" and above.get_yscale() == "linear"
    assert above.get_xlim() == pytest.approx((RATES[0], RATES[-1]))
    assert (above.get_xlabel(), above.get_ylabel()) == ("learning rate", "loss (nats)")


def test_each_run_is_drawn_with_its_smoothed_curve_against_its_own_rates(figure):
    drawn = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    expected = [each for losses in SEARCH.runs for each in (losses, smooth(losses))]
    for points, losses in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(points, np.column_stack([RATES[: len(losses)], losses]))


@pytest.mark.parametrize("method", SUGGESTIONS)
def test_all_suggestions_are_marked_and_the_chosen_one_is_in_the_title(method):
    above = plot_search(SEARCH, method, PLAN).axes[0]
    values = {name: SEARCH.suggestion(name).value for name in SUGGESTIONS}
    labels = {name: f"{name} {value:#.3g}" + " (chosen)" * (name == method) for name, value in values.items()}
    assert upright_lines(above) == {labels[name]: value for name, value in values.items()}
    assert above.figure.get_suptitle() == f"Learning-rate range test: {method} {values[method]:#.3g}"
    legend = [text.get_text() for text in above.get_legend().get_texts()]
    assert sorted(legend) == sorted(["loss", "smoothed loss", "diverged", *labels.values()])


def test_the_shaded_part_begins_where_the_first_run_diverges(figure):
    starts = [divergence_start(RATES, SEARCH.runs[0]), divergence_start(RATES[:80], SEARCH.runs[1])]
    assert starts[0] < starts[1]
    assert shaded(figure.axes[0]) == pytest.approx((starts[0], RATES[-1]))


@pytest.mark.parametrize("runs", [[bowl()], [bowl(), bowl(1.4)[:80]], [(np.array(bowl()) + 1e3).tolist()]])
def test_the_limits_show_the_valley_and_the_initial_level_but_no_divergence(runs):
    low, high = plot_search(Search(RATES, runs), "valley", PLAN).axes[0].get_ylim()
    smallest, first = min(map(min, runs)), runs[0][0]
    assert max(map(max, runs)) - first > 1e3
    assert low < smallest < first < high
    assert high - low < 3 * (first - smallest)


def test_the_plan_shows_its_rates_and_momenta(figure):
    _, below, momentum = figure.axes
    np.testing.assert_array_equal(below.lines[0].get_xydata(), np.column_stack([PLAN.epochs, PLAN.rates]))
    np.testing.assert_array_equal(momentum.lines[0].get_xydata(), np.column_stack([PLAN.epochs, PLAN.momenta]))
    assert (below.get_xlabel(), below.get_ylabel(), momentum.get_ylabel()) == ("epoch", "learning rate", "momentum")
    assert momentum.get_ylim() == (0, 1)


def test_the_ends_that_were_found_are_marked_with_their_numbers(figure):
    below = figure.axes[1]
    assert {text.get_text(): tuple(text.xy) for text in below.texts} == {"0.0123": (0, 0.0123), "0.345": (4, 0.345)}
    dots = [tuple(line.get_xydata()[0]) for line in below.lines if line.get_marker() == "o"]
    assert dots == [(0, 0.0123), (4, 0.345)]


def test_a_schedule_that_begins_at_its_peak_has_one_number():
    below = plot_search(SEARCH, "valley", Plan(EPOCHS, np.full(80, 0.2), None)).axes[1]
    assert [text.get_text() for text in below.texts] == ["0.200"]


def test_an_optimizer_without_momentum_has_no_axis_for_it():
    axes = plot_search(SEARCH, "valley", Plan(EPOCHS, PLAN.rates, None)).axes
    assert [each.get_ylabel() for each in axes] == ["loss (nats)", "learning rate"]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_it_can_be_written(figure, tmp_path: Path, suffix):
    path = tmp_path / f"figure.{suffix}"
    figure.savefig(path)
    assert path.stat().st_size > 5000


def test_its_pixels_are_those_of_its_size(figure, tmp_path: Path):
    figure.savefig(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (700, 800)
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50
