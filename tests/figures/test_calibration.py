"""The reliability diagram and the precision-recall curves: what their axes hold."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cifar_resnets.evaluation.calibration import precision_recall, reliability
from cifar_resnets.figures.calibration import plot_precision_recall, plot_reliability
from cifar_resnets.figures.render import to_image
from cifar_resnets.figures.style import BLUE, PALETTE


def sample(num_classes: int, num: int = 500, absent: int | None = None):
    rng = np.random.default_rng(0)
    labels = rng.integers(num_classes, size=num)
    probabilities = rng.dirichlet(np.full(num_classes, 0.3), num)
    probabilities[np.arange(num), labels] += rng.random(num)
    keep = labels != absent
    return labels[keep], (probabilities / probabilities.sum(axis=1, keepdims=True))[keep]


def draw(figure) -> np.ndarray:
    return np.asarray(to_image(figure))


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_reliability_shows_accuracies_gaps_and_a_histogram():
    numbers = reliability(*sample(10))
    figure = plot_reliability(numbers)
    above, below = figure.axes
    accuracy, over, under = (patch.get_data() for patch in above.patches)
    np.testing.assert_array_equal(accuracy.values, numbers.accuracy)
    assert (numbers.confidence > numbers.accuracy).any() and (numbers.confidence < numbers.accuracy).any()
    for gap, is_so in ((over, numbers.confidence > numbers.accuracy), (under, numbers.confidence < numbers.accuracy)):
        np.testing.assert_array_equal(gap.values, np.where(is_so, numbers.confidence, np.nan))
        np.testing.assert_array_equal(gap.baseline[:-1] if len(gap.baseline) == 16 else gap.baseline, numbers.accuracy)
    [histogram] = (patch.get_data() for patch in below.patches)
    np.testing.assert_allclose(histogram.values, 100 * numbers.counts / numbers.counts.sum())
    np.testing.assert_allclose(histogram.edges, np.arange(16) / 15)
    assert above.get_xlim() == below.get_xlim() == above.get_ylim() == (0, 1)
    assert figure.get_suptitle() == f"Calibration: ECE {100 * numbers.ece:.2f} % of 500 images"
    assert legend(above) == ["accuracy", "gap: overconfident", "gap: underconfident"]


def test_the_bar_of_an_underconfident_bin_is_blue_up_to_its_accuracy():
    figure = plot_reliability(reliability(np.repeat([0, 1], [9, 1]), np.tile([0.7, 0.3], (10, 1))))
    image, to_pixels = draw(figure), figure.axes[0].transData
    x, y = to_pixels.transform((0.7, 0.8)).astype(int)  # between confidence and accuracy
    red, green, blue = image[image.shape[0] - y, x] / 255
    pale = to_rgb(PALETTE["under"])
    assert all(low < each < high for low, each, high in zip(to_rgb(BLUE), (red, green, blue), pale, strict=True))
    assert np.abs(np.array((red, green, blue)) - to_rgb(BLUE)).sum() < np.abs(np.array((red, green, blue)) - pale).sum()


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_up_to_ten_classes_have_a_curve_each(num_classes):
    curves = precision_recall(*sample(num_classes, absent=1))
    figure = plot_precision_recall(curves, [f"$c_{i}$" for i in range(num_classes)])
    known = [i for i in range(num_classes) if i != 1]
    areas = [curves[i].average_precision for i in known]
    [axes] = figure.axes
    assert legend(axes) == [f"$c_{i}$ {area:.3f}" for i, area in zip(known, areas, strict=True)]
    assert [line.get_color() for line in axes.lines] == [f"C{i}" for i in known]
    for label, line in zip(known, axes.lines, strict=True):
        recalls, precisions = line.get_xdata(), line.get_ydata()
        np.testing.assert_array_equal(precisions, curves[label].at(recalls))
        assert (recalls[0], recalls[-1], len(recalls) > 200) == (0, 1, True)
    assert figure.get_suptitle() == f"Precision and recall: mean AP {np.mean(areas):.3f}"


def test_of_many_classes_the_mean_and_the_worst_five():
    curves = precision_recall(*sample(30, 900, absent=4))
    [axes] = plot_precision_recall(curves, [f"class {i}" for i in range(30)]).axes
    areas = {i: curve.average_precision for i, curve in enumerate(curves) if curve is not None}
    worst = sorted(areas, key=lambda i: areas[i])[:5]
    assert legend(axes) == [*(f"class {i} {areas[i]:.3f}" for i in worst), "mean of the classes"]
    recalls = axes.lines[-1].get_xdata()
    expected = np.mean([curves[i].at(recalls) for i in areas], axis=0)
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong_can_be_drawn(right):
    labels = np.arange(20) % 10
    probabilities = np.eye(10)[labels if right else (labels + 1) % 10]
    names = ["$x_1$", "a" * 90, *(f"<b>{i}" for i in range(8))]
    for figure in (
        plot_reliability(reliability(labels, probabilities)),
        plot_precision_recall(precision_recall(labels, probabilities), names),
    ):
        image = draw(figure)
        assert image.std() > 5
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert (border == 255).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_classes", [10, 30])
def test_without_images_there_is_an_empty_figure(num_classes):
    labels, probabilities = np.zeros(0, int), np.zeros((0, num_classes))
    draw(plot_reliability(reliability(labels, probabilities)))
    draw(plot_precision_recall(precision_recall(labels, probabilities), [""] * num_classes))


def test_a_dollar_in_a_legend_is_no_formula():
    curves = precision_recall(*sample(2))
    [axes] = plot_precision_recall(curves, ["$x^2$", "$\\broken{$"]).axes
    assert not any(text.get_parse_math() for text in axes.get_legend().get_texts())
    draw(axes.figure)
