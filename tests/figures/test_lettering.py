"""Texts as one shape: against the same texts as matplotlib's own."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cifar_resnets.figures.lettering import _shape, text_width, write

TEXTS = ["904", "87%", "airplane", "1.5%", "$x_1$", "<b>&", "кошка", "1,234 (5.6 %)"]
PLACES = [(0.5 + i % 2, 0.5 + i // 2) for i in range(len(TEXTS))]


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return 255 - np.asarray(canvas.buffer_rgba())[..., :3].astype(float).mean(axis=2)


def empty(dpi: float = 72):
    figure = Figure(figsize=(400 / 72, 400 / 72), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 2), ylim=(4, 0))
    axes.set_axis_off()
    return figure, axes


def blurred(picture: np.ndarray) -> np.ndarray:
    """Means over 5 x 5 pixels: the two draw the same letters with other edges."""
    return picture.reshape(80, 5, 80, 5).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize(("align", "name"), [(0, "left"), (0.5, "center"), (1, "right")])
@pytest.mark.parametrize("rotated", [False, True])
def test_letters_are_where_matplotlib_puts_them(align, name, rotated):
    figure, axes = empty()
    write(axes, TEXTS, PLACES, 18, align=align, rotated=rotated)
    assert len(axes.get_children()) == len(empty()[1].get_children()) + 1
    theirs, other = empty()
    style = {"rotation": 90, "ha": "center", "va": {"left": "bottom", "right": "top"}.get(name, name)}
    for text, (x, y) in zip(TEXTS, PLACES, strict=True):
        place = style if rotated else {"ha": name, "va": "center_baseline"}
        other.text(x, y, text, size=18, parse_math=False, **place)
    ours, expected = blurred(pixels(figure)), blurred(pixels(theirs))
    assert expected.sum() > 3000
    assert ours.sum() == pytest.approx(expected.sum(), rel=0.1)
    assert np.corrcoef(ours, expected)[0, 1] > 0.75
    # each text is where it belongs: the same ones in another order do not fit
    figure, axes = empty()
    write(axes, TEXTS[::-1], PLACES, 18, align=align, rotated=rotated)
    assert np.corrcoef(blurred(pixels(figure)), expected)[0, 1] < 0.6


def test_shift_is_in_points_to_the_right_and_up():
    pictures = []
    for shift in ((0, 0), (30, 20)):
        figure, axes = empty()
        write(axes, ["8"], [(1, 2)], 40, shift=shift)
        pictures.append(pixels(figure))
    np.testing.assert_allclose(pictures[1], np.roll(pictures[0], (-20, 30), axis=(0, 1)), atol=1)


def test_another_resolution_shows_the_same():
    boxes = []
    for dpi in (72, 144):
        figure, axes = empty(dpi)
        write(axes, TEXTS, PLACES, 18)
        picture = pixels(figure)
        rows, columns = np.nonzero(picture > 100)
        boxes.append(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) / dpi * 72)
    np.testing.assert_allclose(*boxes, atol=1.5)


def test_color_and_nothing():
    figure, axes = empty()
    write(axes, [], np.zeros((0, 2)), 18)
    assert pixels(figure).max() == 0
    write(axes, ["8"], [(1, 2)], 60, color="red")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert (np.asarray(canvas.buffer_rgba())[..., :3] == (255, 0, 0)).all(axis=2).sum() > 100


def test_width_of_the_widest():
    renderer = FigureCanvasAgg(Figure(dpi=72)).get_renderer()
    from matplotlib.font_manager import FontProperties

    for text in ("airplane", "1,234 (5.6 %)", "WWWW"):
        expected, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=40), ismath=False)
        assert text_width(["i", text], 40) == pytest.approx(expected, rel=0.05)
    assert text_width([], 40) == 0


@pytest.mark.filterwarnings("error")
def test_a_letter_without_a_glyph_is_no_warning():
    figure, axes = empty()
    write(axes, ["猫"], [(1, 2)], 40)
    assert pixels(figure).max() > 100


def test_numbers_take_no_memory():
    _shape.cache_clear()
    for number in range(500):
        text_width([f"{number:,} ({number / 7:.1f} %)"], 10)
    assert _shape.cache_info().currsize < 20
