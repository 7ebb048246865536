"""The preprocessing that is exported, against Pillow and against that of a test."""

import numpy as np
import pytest
import torch
from exports import random_images, untrained
from PIL import Image
from support import TINY_NETWORK

from cifar_resnets.export.graph import ImagesToProbabilities, network_of, resize
from cifar_resnets.export.proof import MOST_LEVELS

SHAPES = [(32, 32), (20, 27), (64, 64), (37, 53), (90, 200), (200, 90), (5, 3), (1, 1), (480, 640)]


def by_pillow(images: np.ndarray, size: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BILINEAR)) for each in images]
    )


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_those_of_pillow_but_for_a_level_in_tall_images(shape: tuple[int, int], size: int) -> None:
    images = random_images(2, *shape)
    ours = resize(torch.from_numpy(images), size).numpy()
    difference = np.abs(ours - by_pillow(images, size))
    is_tall = shape[0] - size > 2 * max(shape[1] - size, 0)  # Pillow 13 then begins with the columns
    assert difference.max() <= (MOST_LEVELS if is_tall else 0)
    assert (difference > 0).mean() < 0.3


def test_an_image_of_the_networks_size_is_not_changed() -> None:
    images = torch.from_numpy(random_images(3, 32, 32))
    assert torch.equal(resize(images, 32), images.float())


def test_probabilities_of_images_of_the_networks_size_are_those_of_a_test() -> None:
    classifier, images = untrained(**TINY_NETWORK), random_images(4, 32, 32)
    with torch.inference_mode():
        found = ImagesToProbabilities(classifier).eval()(torch.from_numpy(images))
    torch.testing.assert_close(found, classifier.probabilities(images), atol=1e-6, rtol=0)


def test_the_classifier_is_not_changed() -> None:
    classifier = untrained(**TINY_NETWORK)
    network = network_of(classifier)
    assert network is not classifier.network and not network.training
    assert not any(each.requires_grad for each in network.parameters())
    assert all(each.requires_grad for each in classifier.network.parameters())
