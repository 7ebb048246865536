"""Panels against Pillow, and the colours of heat and of differences."""

from __future__ import annotations

import numpy as np
import pytest

from cifar_resnets.figures.panels import PANEL, as_bytes, difference, enlarged, heated, shrunk


def pictures(height: int, width: int, num: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (48, 48), (96, 96), (1, 1), (12, 24), (24, 6)])
def test_small_images_are_enlarged_in_blocks(size):
    images = pictures(*size)
    factor = PANEL // max(size)
    assert np.array_equal(enlarged(images), images.repeat(factor, axis=1).repeat(factor, axis=2))
    assert shrunk(images) is images


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (40, 90), (95, 33)])
def test_of_other_sizes_each_pixel_is_the_one_that_its_centre_lies_in(size):
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.uint8)
    [found] = enlarged(np.stack([rows, columns, columns], axis=-1)[None]).astype(int)
    assert max(found.shape[:2]) == PANEL
    for axis, side in enumerate(size):
        old = found[:, 0, 0] if axis == 0 else found[0, :, 1]
        centres = (np.arange(len(old)) + 0.5) * side / len(old)
        assert (old <= centres).all() and (centres <= old + 1).all()
    assert (found[..., 0] == found[:, :1, 0]).all() and (found[..., 1] == found[:1, :, 1]).all()


@pytest.mark.parametrize("size", [(192, 192), (224, 224), (300, 97), (96, 480), (2000, 3)])
def test_large_images_are_averaged(size):
    images = pictures(*size)
    found = enlarged(shrunk(images))
    assert max(found.shape[1:3]) == PANEL and min(found.shape[1:3]) >= 1
    assert min(found.shape[1:3]) == pytest.approx(max(1, min(size) * PANEL / max(size)), abs=0.5)
    assert (found.shape[1] < found.shape[2]) == (size[0] < size[1])
    np.testing.assert_allclose(found.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1.5)
    blocks = pictures(192, 192)
    expected = blocks.reshape(2, 96, 2, 96, 2, 3).mean(axis=(2, 4))
    assert np.abs(shrunk(blocks) - expected).max() <= 1  # Pillow rounds after rows and after columns


def test_where_there_is_no_heat_the_image_is_as_it_was():
    images = pictures(8, 8)
    heat = np.zeros((2, 8, 8), np.uint8)
    heat[1, 2:4, 2:4] = 255
    found = heated(images, heat)
    assert np.array_equal(found[0], images[0])
    cold = heat[1] == 0
    assert np.array_equal(found[1][cold], images[1][cold])
    # inferno ends in a pale yellow; a quarter of the image is still to be seen through it
    expected = 0.25 * images[1][~cold] + 0.75 * np.array([0.988362, 0.998364, 0.644924]) * 255
    assert np.abs(found[1][~cold] - expected).max() <= 0.51


def test_more_heat_is_more_of_its_colour():
    images = np.zeros((1, 1, 256, 3), np.uint8)
    brightness = heated(images, np.arange(256, dtype=np.uint8)[None, None]).astype(int).sum(axis=-1)[0, 0]
    assert (np.diff(brightness) >= 0).all() and brightness[-1] > 400


def test_a_difference_is_red_for_the_predicted_class_alone_and_blue_for_the_true_one():
    images = np.full((1, 1, 4, 3), 100, np.uint8)
    predicted, true = (np.array([[levels]], np.uint8) for levels in ([255, 0, 200, 0], [0, 255, 200, 0]))
    red, blue, equal, none = difference(images, predicted, true)[0, 0].astype(int)
    assert red[0] > red[2] + 100 and blue[2] > blue[0] + 100
    assert equal.tolist() == none.tolist() and len(set(equal.tolist())) == 1


def test_a_heat_in_whole_numbers_and_what_is_no_number_is_cold() -> None:
    heat = np.array([0, 0.5, 1, -3, 7, np.nan, np.inf, -np.inf], np.float32)
    assert as_bytes(heat).tolist() == [0, 128, 255, 0, 255, 0, 255, 0]
    assert as_bytes(heat).dtype == np.uint8
