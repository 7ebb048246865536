"""Figures of an evaluation: what their axes and pixels hold, not how they look."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from cifar_resnets.callbacks.publish import publish
from cifar_resnets.evaluation.calibration import most_confused
from cifar_resnets.evaluation.metrics import wilson_interval
from cifar_resnets.figures import confusion as evaluation_figures
from cifar_resnets.figures import figure_layout
from cifar_resnets.figures.confusion import (
    cell_text,
    plot_class_accuracy,
    plot_confused_pairs,
    plot_confusion,
)
from cifar_resnets.figures.figure_layout import shown

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
    return figure.texts[0].get_text()


def picture(figure: Figure, tmp_path) -> Image.Image:
    """As it is published."""

    class Trainer:
        loggers: list = []

    publish(Trainer(), tmp_path, "a/figure", figure)
    return Image.open(tmp_path / "figures" / "a_figure.png").convert("RGB")


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, tuple[float, float], float]]:
    """Each text that is written as a shape, with its place in the axes' data and the pixels that it is shifted up."""
    found = []
    genuine = evaluation_figures.write

    def noting(axes, texts, at, size, **style) -> None:
        up = style.get("shift", (0, 0))[1]
        found.extend((text, tuple(map(float, place)), up) for text, place in zip(texts, at, strict=True))
        genuine(axes, texts, at, size, **style)

    monkeypatch.setattr(evaluation_figures, "write", noting)
    monkeypatch.setattr(figure_layout, "write", noting)
    return found


# The matrix.


@pytest.mark.parametrize("num_classes", [2, 3, 10, 45, 100])
def test_each_cell_has_the_color_of_its_percent(num_classes, tmp_path):
    confusion = without(counts(num_classes), 1)
    figure = plot_confusion(confusion, names(num_classes))
    to_pixels = figure.axes[0].transData.frozen()
    image = np.asarray(picture(figure, tmp_path))
    for row, column in np.random.default_rng(0).integers(num_classes, size=(60, 2)):
        # near its corner, where it has no number; small cells have none, and "no images" is in the middle of its row
        x, y = to_pixels.transform((column - 0.44, row - 0.38) if num_classes <= 20 else (column, row))
        if row == 1 and abs(column - num_classes / 2) < 8 and num_classes > 20:
            continue
        found = image[int(image.shape[0] - y), int(x)]
        share = confusion[row, column] / confusion[row].sum() if row != 1 else np.nan
        expected = (0.827, 0.827, 0.827) if row == 1 else colormaps["Blues"](share**0.5)[:3]
        np.testing.assert_allclose(found / 255, expected, atol=0.02)


def test_title_has_accuracy_and_number_of_images():
    confusion = np.array([[1500, 250], [0, 250]])
    assert title(plot_confusion(confusion, ["a", "b"])) == "Accuracy 87.50 % of 2,000 images"
    assert "nan" in title(plot_confusion(0 * confusion, ["a", "b"]))


@pytest.mark.parametrize("num_classes", [2, 10, 20])
def test_each_cell_has_its_numbers(num_classes, written):
    confusion = without(counts(num_classes), 0)
    plot_confusion(confusion, names(num_classes))
    above = {place: text for text, place, up in written if up > 0}
    below = {place: text for text, place, up in written if up < 0 and text.endswith("%")}
    cells = {(float(column), float(row)) for row in range(1, num_classes) for column in range(num_classes)}
    assert above.keys() == below.keys() == cells
    for column, row in cells:
        count = confusion[int(row), int(column)]
        assert above[column, row] == str(count)
        percent = 100 * count / confusion[int(row)].sum()
        assert float(below[column, row].rstrip("%")) == pytest.approx(percent, abs=0.501 if percent > 9 else 0.0501)
    assert [place for text, place, _ in written if text == "no images"] == [((num_classes - 1) / 2, 0)]


def test_many_classes_have_names_and_a_scale_but_no_numbers(written):
    figure = plot_confusion(counts(100), names(100))
    assert sorted(text for text, _, _ in written) == sorted(2 * names(100))
    assert all(place[1] == int(re.sub(r"\D", "", t)) for t, place, _ in written[:100])
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["0", "1", "5", "10", "25", "50", "100"]
    assert len(plot_confusion(counts(20), names(20)).axes) == 1


def test_so_many_classes_that_only_some_have_names(written):
    figure = plot_confusion(counts(400), names(400))
    assert 80 < len(written) / 2 < 110
    assert max(figure.get_size_inches()) * 72 < 1500


def test_percents_of_a_cell():
    assert [cell_text(1, p)[1] for p in (0, 0.04, 0.4, 9.94, 9.96, 99.6, 100)] == [
        *("0%", "0.0%", "0.4%", "9.9%", "10%", "100%", "100%")
    ]


# The bars.


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_bars_end_at_the_accuracies(num_classes, written):
    confusion = without(counts(num_classes), 1)
    values, intervals = accuracies(confusion)
    figure = plot_class_accuracy(values, intervals, names(num_classes))
    [axes] = figure.axes
    bars, lines = (c.get_segments() for c in axes.collections)
    np.testing.assert_allclose(
        [bar[1] for bar in bars], np.column_stack([np.nan_to_num(100 * values), np.arange(num_classes)])
    )
    known = np.delete(np.arange(num_classes), 1)
    np.testing.assert_allclose([lines[i][:, 0] for i in known], 100 * intervals[known])
    mean = 100 * np.nanmean(values)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(mean)
    assert title(figure) == f"Accuracy of the classes, mean {mean:.2f} %"
    assert [place[1] for text, place, _ in written if text == "no images"] == [1]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first class is at the top"
    shown_numbers = [float(text) for text, (x, _), _ in written if x == 100]
    np.testing.assert_allclose(shown_numbers, 100 * values[known] if num_classes <= 20 else [], atol=0.051)


def test_pairs_are_named_with_count_and_percent(written):
    pairs = most_confused(np.array([[90, 7, 3], [0, 1500, 1500], [0, 0, 13]]))
    figure = plot_confused_pairs(pairs, ["cat", "dog", "elephant"])
    texts = [text for text, _, _ in written]
    assert texts == ["dog → elephant", "cat → dog", "cat → elephant", "1,500 (50.0 %)", "7 (7.0 %)", "3 (3.0 %)"]
    [bars] = figure.axes[0].collections
    assert [segment[1][0] for segment in bars.get_segments()] == [1500, 7, 3]


def test_no_pairs_say_so():
    figure = plot_confused_pairs([], ["a", "b"])
    assert [text.get_text() for text in figure.texts][1] == "no image is taken for another class"


# All.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "confusion", [counts(10), without(counts(10), 3), np.eye(10, dtype=int), np.zeros((10, 10), int)]
)
def test_odd_names_and_numbers_can_be_drawn(confusion, written, tmp_path):
    for figure in (
        plot_confusion(confusion, ODD),
        plot_class_accuracy(*accuracies(confusion), ODD),
        plot_confused_pairs(most_confused(confusion), ODD),
    ):
        image = np.asarray(picture(figure, tmp_path))
        assert image.std() > 5
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert (border == 255).all(), "nothing is cut off"
    assert {"$x_1$", "<b>bold</b>", "кошка", "two lines"} <= {text for text, _, _ in written}


@pytest.mark.parametrize("num_classes", [2, 10, 20, 45, 100])
def test_nothing_reaches_the_border(num_classes, tmp_path):
    confusion = counts(num_classes)
    confusion[0, 0] = 123456
    long = [f"{i} is a very long name WWWWWWW" for i in range(num_classes)]
    for figure in (
        plot_confusion(confusion, long),
        plot_class_accuracy(*accuracies(confusion), long),
        plot_confused_pairs(most_confused(confusion * 1000), long),
    ):
        image = np.asarray(picture(figure, tmp_path))
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert (border == 255).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("a\tb\n c", "a b c"),
        ("x" * 20, "x" * 20),
        ("abcdefghijklmnopqrstuvwxyz", "abcdefghij…rstuvwxyz"),
        ("\udcffa", "?a"),
        ("$\\alpha$", "$\\alpha$"),
    ],
)
def test_names_are_shown_on_one_line(name, expected):
    assert shown(name) == expected and len(expected) <= 20
