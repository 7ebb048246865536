"""Test-time augmentation, view by view, by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.evaluation.tta import average_views, check_views

IMAGES = torch.randn(4, 3, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def classify(images: Tensor) -> Tensor:
    """Logits that depend on where each pixel is, and not linearly."""
    height, width = images.shape[2:]
    places = torch.arange(3 * height * width, dtype=torch.float64).view(3, height, width).sin()
    return torch.stack([(images * places).sum((1, 2, 3)), (images.tanh() * places.cos()).sum((1, 2, 3))], dim=1)


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """An image (c, h, w) moved by some pixels, pixel by pixel, its border mirrored."""
    _, height, width = image.shape
    result = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            source = abs(row - down), abs(column - right)
            source = min(source[0], 2 * (height - 1) - source[0]), min(source[1], 2 * (width - 1) - source[1])
            result[:, row, column] = image[:, source[0], source[1]]
    return result


def views_of(image: np.ndarray, names: list[str]) -> list[tuple[np.ndarray, float]]:
    views = [(image, 1.0)]
    for pixels in (int(name[5:]) for name in names if name != "mirror"):
        views = [(image, 0.5), (moved(image, -pixels, -pixels), 0.25), (moved(image, pixels, pixels), 0.25)]
    if "mirror" in names:
        views = [(each, weight / 2) for view, weight in views for each in (view, view[:, :, ::-1].copy())]
    return views


@pytest.mark.parametrize("names", [["mirror"], ["shift1"], ["mirror", "shift1"], ["shift3", "mirror"], []])
def test_the_average_is_that_of_a_plain_reference(names: list[str]) -> None:
    seen = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return classify(images)

    result = average_views(counting, IMAGES, classify(IMAGES), names)
    for image, logits in zip(IMAGES.numpy(), result, strict=True):
        views = views_of(image, names)
        assert sum(weight for _, weight in views) == 1
        expected = sum(classify(torch.from_numpy(view)[None])[0] * weight for view, weight in views)
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    assert len(seen) == len(views) - 1  # the logits of the images are not computed again


def test_the_logits_that_are_given_stay() -> None:
    logits = classify(IMAGES)
    before = logits.clone()
    average_views(classify, IMAGES, logits, ["mirror", "shift1"])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("names", [[], ["mirror"], ["shift1"], ["shift12", "mirror"]])
def test_views_that_there_are(names: list[str]) -> None:
    check_views(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["flip"], r"^model\.tta: flip is not allowed, give mirror, or shift and a number of pixels such as shift1$"),
        (["shift"], "shift is not allowed"),
        (["shift0"], "shift0 is not allowed"),
        (["mirror", "mirror"], "mirror, mirror is not allowed, give each kind of view once"),
        (["shift1", "shift2"], "shift1, shift2 is not allowed, give each kind of view once"),
    ],
)
def test_views_that_there_are_not(names: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_views(names)


def test_a_shift_must_leave_something_of_the_image() -> None:
    check_views(["shift7"], (8, 10))
    with pytest.raises(ConfigurationError, match="mirror, shift8 is not allowed for images of 8x10 pixels"):
        check_views(["mirror", "shift8"], (8, 10))
