"""The picture of one image and its heat."""

from __future__ import annotations

import numpy as np
import pytest

from cifar_resnets.figures.explanation import CAPTION, GAP, SIDE, draw_explanation
from cifar_resnets.figures.panels import as_bytes, difference, heated


@pytest.mark.parametrize("size", [8, 32, 300])
def test_panels_are_the_image_both_heats_and_their_difference(size: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    heat = rng.random((2, size, size), dtype=np.float32)
    picture = draw_explanation(image, heat, [("cat", 0, 0.9), ("dog\n", 1, 0.1)])
    first, second = as_bytes(heat)
    one = image[None]
    panels = [one, heated(one, first[None]), heated(one, second[None]), difference(one, first[None], second[None])]
    factor = max(1, round(SIDE / size))
    side = max(SIDE, size * factor)
    assert picture.size == (4 * side + 5 * GAP, size * factor + CAPTION + GAP)
    for column, expected in enumerate(panels):
        left = GAP + column * (side + GAP) + (side - size * factor) // 2
        shown = np.asarray(picture)[GAP : GAP + size * factor : factor, left : left + size * factor : factor]
        np.testing.assert_array_equal(shown, expected[0])
