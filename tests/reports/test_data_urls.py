"""Addresses are decoded again by Pillow."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from cifar_resnets.reports.data_urls import panels, thumbnail
from cifar_resnets.results.json_files import Mistakes


def decoded(address: str) -> np.ndarray:
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True))))


def mistakes(height: int, width: int, heat: bool = True) -> Mistakes:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    columns = [np.array([0, 1]), np.array([0, 0]), np.array([1, 1]), *[np.array([0.1, 0.2], np.float32)] * 2]
    maps = np.zeros((2, 2, height, width), np.float32)
    maps[1, :, : height // 2] = 1  # the true class above
    return Mistakes(*columns, images, (maps[0], maps[1]) if heat else None, ("layer3", "gradcam"))


def test_a_small_image_is_shown_as_it_is() -> None:
    shown = mistakes(8, 6)
    assert (decoded(thumbnail(shown, 1)) == shown.images[1]).all()


def test_a_large_image_is_shrunk() -> None:
    assert decoded(thumbnail(mistakes(224, 112), 0)).shape == (96, 48, 3)


def test_panels() -> None:
    shown = mistakes(8, 8)
    pictures = {name: decoded(address).astype(int) for name, address in panels(shown, 1)}
    assert list(pictures) == ["image", "predicted", "true", "difference"]
    image = shown.images[1].astype(int)
    assert (pictures["image"] == image).all()
    assert (pictures["predicted"] == image).all()  # no heat
    assert (pictures["true"][4:] == image[4:]).all()
    assert np.ptp(pictures["true"][:4], axis=(0, 1)).max() < 80  # hardly anything is seen below the heat
    above, below = pictures["difference"][:4].mean(axis=(0, 1)), pictures["difference"][4:].mean(axis=(0, 1))
    assert above[2] > above[0] + 50  # blue, the true class alone
    assert abs(below[2] - below[0]) < 1  # grey


def test_heat_of_large_images_and_heat_that_is_no_number() -> None:
    shown = mistakes(200, 100)
    assert shown.heat is not None
    shown.heat[0][:] = np.nan
    assert [decoded(address).shape for _, address in panels(shown, 0)] == [(96, 48, 3)] * 4


def test_without_heat() -> None:
    assert [name for name, _ in panels(mistakes(8, 8, heat=False), 0)] == ["image"]
