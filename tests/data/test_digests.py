"""Digests of images: whatever changes in them is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cifar_resnets.data.digests import changed_images, digest

IMAGES = torch.arange(5 * 4 * 4 * 3, dtype=torch.uint8).reshape(5, 4, 4, 3)
LABELS = torch.tensor([0, 1, 0, 1, 1])


def digests(**changes: Any) -> dict[str, Any]:
    same = {"train": (IMAGES, LABELS), "val": (IMAGES[:2], LABELS[:2])}
    return {name: digest(*each) for name, each in {**same, **changes}.items()}


def test_the_same_images_have_not_changed() -> None:
    copies = {"train": (IMAGES.clone(), LABELS.clone())}
    assert changed_images(digests(), digests(**copies)) is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train": (IMAGES[1:], LABELS[1:])}, "the training images (5 then, 4 now) have changed"),
        ({"train": (IMAGES.flip(0), LABELS)}, "the training images (or their order) have changed"),
        ({"val": (IMAGES[:2].bitwise_xor(1), LABELS[:2])}, "the validation images (or their order) have changed"),
        ({"val": (IMAGES[:2], 1 - LABELS[:2])}, "the labels of the validation images have changed"),
        ({"train": (IMAGES.reshape(5, 2, 8, 3), LABELS)}, "the training images (or their order) have changed"),
        (
            {"train": (IMAGES, 1 - LABELS), "val": (IMAGES[:1], LABELS[:1])},
            "the labels of the training images and the validation images (2 then, 1 now) have changed",
        ),
    ],
)
def test_what_has_changed_is_named(changes: dict[str, Any], text: str) -> None:
    assert changed_images(digests(), digests(**changes)) == text


def test_without_validation_images() -> None:
    none = {"val": (IMAGES[:0], LABELS[:0])}
    assert changed_images(digests(**none), digests(**none)) is None
    assert changed_images(digests(), digests(**none)) == "the validation images (2 then, 0 now) have changed"
