"""Figures of an evaluation: what their axes and pixels hold, not how they look."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from cifar_resnets.evaluation.calibration import most_confused
from cifar_resnets.evaluation.metrics import wilson_interval
from cifar_resnets.figures.confusion import (
    STRENGTH,
    cell_text,
    plot_class_accuracy,
    plot_confused_pairs,
    plot_confusion,
)
from cifar_resnets.figures.render import to_image, to_svg
from cifar_resnets.figures.style import BLUE, LINE, ORANGE

ODD = ["$x_1$", "<b>bold</b>", "a" * 90, "кошка", "  two\nlines ", "\udcff", "$", "_", "", "猫"]


def counts(num_classes: int, absent: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(num_classes)
    confusion = rng.poisson(0.3, (num_classes, num_classes)) + np.diag(rng.integers(20, 99, num_classes))
    confusion[absent if absent is not None else num_classes :] *= absent is None
    return confusion


def without(confusion: np.ndarray, label: int) -> np.ndarray:
    changed = confusion.copy()
    changed[label] = 0
    return changed


def names(num: int) -> list[str]:
    return [f"class {i}" for i in range(num)]


def accuracies(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(int(confusion[i, i]), int(confusion[i].sum())) for i in range(len(confusion))]
    intervals = [wilson_interval(*pair) if pair[1] else (np.nan, np.nan) for pair in pairs]
    return np.array([c / n if n else np.nan for c, n in pairs]), np.array(intervals)


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(to_image(figure))


def written(axes: Axes) -> dict[tuple[float, float], str]:
    """The text at each place of the axes' data."""
    return {text.get_position(): text.get_text() for text in axes.texts}


def row_names(axes: Axes) -> dict[float, str]:
    """The name of each row that has one."""
    return {at: label.get_text() for at, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}


# The matrix.


@pytest.mark.parametrize("num_classes", [2, 3, 10, 45, 100])
def test_each_cell_has_the_color_of_its_percent(num_classes):
    confusion = without(counts(num_classes), 1)
    figure = plot_confusion(confusion, names(num_classes))
    image = pixels(figure)
    to_pixels = figure.axes[0].transData.frozen()
    for row, column in np.random.default_rng(0).integers(num_classes, size=(60, 2)):
        # near its corner, where it has no number; small cells have none, and "no images" is in the middle of its row
        x, y = to_pixels.transform((column - 0.44, row - 0.38) if num_classes <= 20 else (column, row))
        if row == 1 and abs(column - num_classes / 2) < 8 and num_classes > 20:
            continue
        found = image[int(image.shape[0] - y), int(x)]
        share = confusion[row, column] / confusion[row].sum() if row != 1 else np.nan
        opacity = share**0.5 * (STRENGTH if num_classes <= 20 else 1)
        color = np.array(to_rgb(BLUE if row == column else ORANGE))
        expected = to_rgb(LINE) if row == 1 else 1 - opacity * (1 - color)
        np.testing.assert_allclose(found / 255, expected, atol=0.03)


def test_a_class_that_is_always_taken_for_another_is_not_the_color_of_a_right_one():
    image = pixels(plot_confusion(np.array([[0, 9], [0, 9]]), ["a", "b"])).reshape(-1, 3).astype(int)
    red, _, blue = image.T
    assert (red > blue + 40).sum() == pytest.approx((blue > red + 40).sum(), rel=0.05)


def test_title_has_accuracy_and_number_of_images():
    confusion = np.array([[1500, 250], [0, 250]])
    assert title(plot_confusion(confusion, ["a", "b"])) == "Accuracy 87.50 % of 2,000 images"
    assert "nan" in title(plot_confusion(0 * confusion, ["a", "b"]))


@pytest.mark.parametrize("num_classes", [2, 10, 20])
def test_each_cell_has_its_numbers(num_classes):
    confusion = without(counts(num_classes), 0)
    [axes] = plot_confusion(confusion, names(num_classes)).axes
    found = written(axes)
    assert found.pop(((num_classes - 1) / 2, 0)) == "no images"
    assert found.keys() == {(column, row) for row in range(1, num_classes) for column in range(num_classes)}
    for (column, row), text in found.items():
        count, share = text.split("\n")
        assert count == str(confusion[row, column])
        percent = 100 * confusion[row, column] / confusion[row].sum()
        assert float(share.rstrip("%")) == pytest.approx(percent, abs=0.501 if percent > 9 else 0.0501)


def test_many_classes_have_names_and_a_scale_but_no_numbers():
    [axes] = plot_confusion(counts(100), names(100)).axes
    assert written(axes) == {}
    assert row_names(axes) == dict(enumerate(names(100)))
    assert [label.get_text() for label in axes.get_xticklabels()] == names(100)
    [scale] = axes.child_axes
    assert [t.get_text() for t in scale.get_yticklabels()] == ["0", "1", "5", "10", "25", "50", "100"]
    assert [t.get_text() for t in scale.get_xticklabels()] == ["right", "wrong"]
    assert plot_confusion(counts(20), names(20)).axes[0].child_axes == []


def test_so_many_classes_that_only_some_have_names():
    figure = plot_confusion(counts(400), names(400))
    assert 80 < len(row_names(figure.axes[0])) < 110
    assert max(figure.get_size_inches()) * 144 < 1600


def test_many_cells_are_few_shapes():
    confusion = np.random.default_rng(0).integers(0, 3, (100, 100)) + 50 * np.eye(100, dtype=int)
    svg = to_svg(plot_confusion(confusion, names(100)), "a", "")
    assert svg.count("<path") < 350
    assert len(svg) < 500_000


def test_percents_of_a_cell():
    assert [cell_text(1, p) for p in (0, 0.04, 0.4, 9.94, 9.96, 99.6, 100)] == [
        *("1\n0%", "1\n0.0%", "1\n0.4%", "1\n9.9%", "1\n10%", "1\n100%", "1\n100%")
    ]


# The bars.


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_bars_end_at_the_accuracies(num_classes):
    confusion = without(counts(num_classes), 1)
    values, intervals = accuracies(confusion)
    figure = plot_class_accuracy(values, intervals, names(num_classes))
    [axes] = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], np.nan_to_num(100 * values))
    np.testing.assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in axes.patches], range(num_classes))
    [lines] = axes.collections
    known = np.delete(np.arange(num_classes), 1)
    np.testing.assert_allclose([lines.get_segments()[i][:, 0] for i in known], 100 * intervals[known])
    mean = 100 * np.nanmean(values)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(mean)
    assert title(figure) == f"Accuracy of the classes, mean {mean:.2f} %"
    assert row_names(axes) == dict(enumerate(names(num_classes)))
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first class is at the top"
    beside = {row: text for (_, row), text in written(axes).items()}
    assert beside.pop(1) == "no images"
    shown_numbers = [float(beside[row]) for row in sorted(beside)]
    np.testing.assert_allclose(shown_numbers, 100 * values[known] if num_classes <= 20 else [], atol=0.051)


def test_pairs_are_named_with_count_and_percent():
    pairs = most_confused(np.array([[90, 7, 3], [0, 1500, 1500], [0, 0, 13]]))
    [axes] = plot_confused_pairs(pairs, ["cat", "dog", "elephant"]).axes
    assert list(row_names(axes).values()) == ["dog → elephant", "cat → dog", "cat → elephant"]
    assert list(written(axes).values()) == [" 1,500 (50.0 %)", " 7 (7.0 %)", " 3 (3.0 %)"]
    assert [bar.get_width() for bar in axes.patches] == [1500, 7, 3]


def test_no_pairs_say_so():
    figure = plot_confused_pairs([], ["a", "b"])
    assert [text.get_text() for text in figure.texts][-1] == "no image is taken for another class"


# All.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "confusion", [counts(10), without(counts(10), 3), np.eye(10, dtype=int), np.zeros((10, 10), int)]
)
def test_odd_names_and_numbers_can_be_drawn(confusion):
    for figure in (
        plot_confusion(confusion, ODD),
        plot_class_accuracy(*accuracies(confusion), ODD),
        plot_confused_pairs(most_confused(confusion), ODD),
    ):
        image = pixels(figure)
        assert image.std() > 5
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert (border == 255).all(), "nothing is cut off"
    [axes] = plot_confusion(confusion, ODD).axes
    assert {"$x_1$", "<b>bold</b>", "кошка", "two lines"} <= set(row_names(axes).values())
    assert not any(label.get_parse_math() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()])


@pytest.mark.parametrize("num_classes", [2, 10, 20, 45, 100])
def test_nothing_reaches_the_border(num_classes):
    confusion = counts(num_classes)
    confusion[0, 0] = 123456
    long = [f"{i} is a very long name WWWWWWW" for i in range(num_classes)]
    for figure in (
        plot_confusion(confusion, long),
        plot_class_accuracy(*accuracies(confusion), long),
        plot_confused_pairs(most_confused(confusion * 1000), long),
    ):
        image = pixels(figure)
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert (border == 255).all()
