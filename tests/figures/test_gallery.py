"""The gallery: one size, panels in their places, names of any kind, colours that say what is right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_resnets.figures import gallery as gallery_module
from cifar_resnets.figures.gallery import (
    CAPTION,
    HEADER,
    MARGIN,
    RIGHT,
    ROW,
    Gallery,
    draw_gallery,
    gallery_height,
    shown_name,
)
from cifar_resnets.figures.panels import PREDICTED, TRUE

NAMES = ["cat", "dog", "ship", "truck"]
FIELD = (0, 255, 255)


def gallery(num: int = 5, size: tuple[int, int] = (32, 32), heat: bool = True, **changes: Any) -> Gallery:
    """Images whose predicted class is hot in the first row, and whose true class is hot in the last row."""
    rng = np.random.default_rng(0)
    labels = np.arange(num) % 3
    maps = np.zeros((num, 2, *size), np.float32)
    maps[:, 0, 0], maps[:, 1, -1] = 1, 1
    found = Gallery(
        rng.integers(0, 200, (num, *size, 3), dtype=np.uint8),
        rng.permutation(10000)[:num],
        labels,
        labels + 1,
        np.linspace(0.01, 0.2, num, dtype=np.float32),
        np.linspace(0.9, 0.7, num, dtype=np.float32),
        maps if heat else None,
    )
    return replace(found, **changes)


def panel(picture: Image.Image, row: int, column: int) -> np.ndarray:
    left, top = MARGIN + CAPTION + column * ROW + 8, HEADER + row * ROW + 4
    return np.asarray(picture)[top : top + 96, left : left + 96]


def caption(picture: Image.Image, row: int) -> np.ndarray:
    return np.asarray(picture)[HEADER + row * ROW + 2 : HEADER + (row + 1) * ROW - 2, : MARGIN + CAPTION]


def has(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(axis=-1).any())


@pytest.mark.parametrize("num", [0, 1, 5, 16])
@pytest.mark.parametrize("heat", [True, False])
def test_the_size_depends_on_the_number_of_images_alone(num, heat):
    picture = draw_gallery(gallery(num, heat=heat, note="gradcam at layer3 (8x8)"), NAMES)
    assert picture.size == (700, 66 + num * 104) == (700, gallery_height(num)) and picture.mode == "RGB"
    assert picture.height / picture.width < 2.5  # TensorBoard scrolls what is higher than 2.9 times its width


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (28, 28), (32, 48), (100, 30), (224, 224)])
def test_images_of_any_size_lie_in_the_middle_of_their_places(size):
    drawn = gallery(3, size, heat=False)
    picture = draw_gallery(drawn, NAMES)
    factor = 96 / max(size)
    height, width = (max(1, round(side * factor)) for side in size)
    top, left = (96 - height) // 2, (96 - width) // 2
    for row, image in enumerate(drawn.images):
        found = panel(picture, row, 0).astype(int)
        inside = found[top : top + height, left : left + width]
        resampling = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
        expected = np.asarray(Image.fromarray(image).resize((width, height), resampling)).astype(int)
        assert (inside == expected).all(axis=-1).mean() > 0.95
        outside = np.ones((96, 96), bool)
        outside[top : top + height, left : left + width] = False
        assert (found[outside] == 255).all()


def test_the_columns_are_image_predicted_true_and_difference():
    drawn = gallery(5)
    picture = draw_gallery(drawn, NAMES)
    for row, image in enumerate(drawn.images):
        plain = image.repeat(3, axis=0).repeat(3, axis=1)
        assert np.array_equal(panel(picture, row, 0), plain)
        for column, (hot, cold) in {1: (slice(0, 3), slice(3, 96)), 2: (slice(93, 96), slice(0, 93))}.items():
            found = panel(picture, row, column)
            assert np.array_equal(found[cold], plain[cold])
            assert (found[hot] != plain[hot]).any(axis=-1).all()
        found = panel(picture, row, 3).astype(int)
        assert (found[:3, :, 0] > found[:3, :, 2] + 50).all()  # predicted alone: red
        assert (found[-3:, :, 2] > found[-3:, :, 0] + 50).all()  # true alone: blue
        assert (found[3:-3].max(axis=-1) == found[3:-3].min(axis=-1)).all()  # neither: grey


def test_without_heat_there_is_the_image_alone():
    picture = draw_gallery(gallery(2, heat=False), NAMES)
    assert all((panel(picture, row, column) == 255).all() for row in (0, 1) for column in (1, 2, 3))
    assert (np.asarray(picture)[:HEADER, MARGIN + CAPTION + ROW + 8 :] == 255).all()  # nor names of columns


def test_what_is_right_by_now_is_green_and_has_no_difference():
    labels = np.arange(3)
    picture = draw_gallery(gallery(3, labels=labels, predicted=np.array([1, 1, 3])), NAMES)
    colors = [[has(caption(picture, row), color) for color in (TRUE, PREDICTED, RIGHT)] for row in range(3)]
    assert colors == [[True, True, False], [False, False, True], [True, True, False]]
    assert len(np.unique(panel(picture, 1, 3))) == 1 and len(np.unique(panel(picture, 0, 3))) > 5


def test_no_mistake_at_all_is_said_so():
    picture = np.asarray(draw_gallery(gallery(0), NAMES))
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert has(picture, RIGHT) and not colors & {TRUE, PREDICTED}  # the line alone, without names of columns


@pytest.mark.parametrize("grouped", [True, False])
def test_rules_part_the_pairs_of_a_grouped_gallery(grouped):
    labels, predicted = np.array([0, 0, 1, 0, 0]), np.array([1, 1, 0, 1, 2])
    picture = np.asarray(draw_gallery(gallery(5, labels=labels, predicted=predicted), NAMES, grouped=grouped))
    ruled = [row for row in range(5) if (picture[HEADER + row * ROW, MARGIN:-MARGIN] == 32).all()]
    assert ruled == ([2, 3, 4] if grouped else [])


@pytest.mark.parametrize(
    "field, expected",
    [
        ((8, 4, 15, 27), (24, 12, 47, 83)),  # first row, first column, last row, last column; three pixels each
        ((-50, -50, 100, 100), (0, 0, 95, 95)),
        ((-np.inf, -np.inf, np.inf, np.inf), (0, 0, 95, 95)),
        ((20, -9, 40, 9), (60, 0, 95, 29)),
    ],
)
def test_a_field_is_a_box_over_the_image_as_far_as_it_lies_in_it(field, expected):
    picture = draw_gallery(gallery(2, fields=np.array([field, field], float)), NAMES)
    for row in range(2):
        marked = (panel(picture, row, 0) == FIELD).all(axis=-1)
        rows, columns = np.nonzero(marked)
        assert (rows.min(), columns.min(), rows.max(), columns.max()) == expected
        outline = np.zeros((96, 96), bool)
        top, left, bottom, right = expected
        outline[top : bottom + 1, left : right + 1] = True
        outline[top + 2 : bottom - 1, left + 2 : right - 1] = False
        assert np.array_equal(marked, outline)
        assert not (panel(picture, row, 1) == FIELD).all(axis=-1).any()


def test_a_box_over_an_image_that_is_not_square():
    picture = draw_gallery(gallery(1, (16, 32), fields=np.array([[4, 8, 7, 15]], float)), NAMES)
    rows, columns = np.nonzero((panel(picture, 0, 0) == FIELD).all(axis=-1))
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == (24 + 12, 24, 24 + 23, 47)


STRANGE = [
    "",
    " ",
    "a" * 300,
    "two\nlines",
    "<b>&amp;</b>",
    "猫",
    "кошка",
    "قطة",
    "🐈",
    "\x00\x1b[31m",
    "e\u0301té",
    "%s {x}",
]


@pytest.mark.parametrize("name", STRANGE)
def test_any_name_stays_in_its_place(name):
    drawn, blank = gallery(2), ["x"] * 4
    picture, other = (np.asarray(draw_gallery(drawn, each)) for each in ([name] * 4, blank))
    differ = (picture != other).any(axis=-1)
    assert not differ[:HEADER].any() and not differ[:, MARGIN + CAPTION - 80 :].any()
    assert differ.any()
    for row in range(2):
        assert not differ[HEADER + row * ROW + 70 : HEADER + (row + 1) * ROW].any()  # the place in the data


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cat", "cat"),
        ("pickup_truck", "pickup_truck"),
        ("кошка", "кошка"),
        ("  a \n b ", "a b"),
        ("猫", "class 3"),
        ("cat 猫", "class 3 cat"),
        ("", "class 3"),
    ],
)
def test_letters_that_the_font_lacks_give_way_to_the_class_number(name, expected):
    assert shown_name(name, 3) == expected


def test_names_are_cut_only_where_they_have_to_be():
    def ink(name: str) -> int:
        """The last column in which a name has left ink, without the probability."""
        picture = draw_gallery(gallery(1), [name] * 4)
        return int(np.nonzero((caption(picture, 0)[:38, :190] < 200).any(axis=(0, 2)))[0].max())

    widths = [ink("m" * num) for num in range(1, 40)]
    assert widths[0] < widths[1] < widths[2] < widths[3] and max(widths) < 190
    assert max(widths[20:]) - min(widths[20:]) < 25  # all are cut
    whole, cut = (draw_gallery(gallery(1), [name] * 4) for name in ("sweet_pepper", "sweet_pepper_x_y_z_and_more"))
    assert not np.array_equal(np.asarray(whole), np.asarray(cut))


def test_a_picture_is_made_of_what_it_is_given_alone():
    drawn = gallery(4)
    copies = [np.copy(each) for each in (drawn.images, drawn.heat)]
    first, second = (np.asarray(draw_gallery(drawn, NAMES)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(drawn.images, copies[0]) and np.array_equal(drawn.heat, copies[1])
    assert not np.array_equal(first, np.asarray(draw_gallery(replace(drawn, note="another"), NAMES)))


def test_what_is_not_a_number_is_no_error():
    heat, p = np.full((2, 2, 32, 32), np.nan, np.float32), np.full(2, np.nan, np.float32)
    drawn = gallery(2, heat=True)
    picture = draw_gallery(replace(drawn, heat=heat, p_label=p, p_predicted=p), NAMES)
    assert np.array_equal(panel(picture, 0, 1), panel(picture, 0, 0))


def test_the_name_of_the_file_is_below_the_classes():
    drawn = gallery(1, heat=False)
    picture = {name: caption(draw_gallery(replace(drawn, paths=paths), NAMES), 0)[66:] for name, paths in {
        "number": None, "file": ["test/cat/1.png"], "elsewhere": ["train/dog/1.png"], "other": ["test/cat/2.png"],
    }.items()}  # fmt: skip
    assert np.array_equal(picture["file"], picture["elsewhere"])
    assert not np.array_equal(picture["file"], picture["other"])
    assert not np.array_equal(picture["file"], picture["number"])


@pytest.mark.parametrize("size", [2, 60, 255])
def test_a_long_name_is_shortened_in_the_middle_and_stays_beside_the_image(size):
    drawn = replace(gallery(1, heat=False), paths=["test/cat/" + "W" * size + "_001.png"])
    name = gallery_module._name_of_image(drawn, 0)
    assert name.startswith("W") and name.endswith("001.png") and ("…" in name) == (size > 2)
    below = np.asarray(draw_gallery(drawn, NAMES))[HEADER + 70 : HEADER + ROW, MARGIN + CAPTION : MARGIN + CAPTION + 8]
    assert (below == 255).all()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a/two\nlines.png", "two\\nlines.png"), ("a/猫.png", "image 7 .png"), ("a/\u202egnp.png", "\\u202egnp.png")],
)
def test_a_name_that_cannot_be_drawn(path, expected):
    drawn = replace(gallery(1, heat=False), paths=[path], index=np.array([7]))
    assert gallery_module._name_of_image(drawn, 0) == expected
