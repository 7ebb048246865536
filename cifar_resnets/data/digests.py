"""Digests of images and labels: whether a run that is resumed goes on with the same ones."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

NAMES = {"train": "training", "val": "validation"}


def digest(images: Tensor, labels: Tensor) -> dict[str, int | str]:
    """Returns the number of images, and the SHA-256 of their pixels and of their labels, both in their order.

    Args:
        images: uint8 (n, h, w, c).
        labels: int64 (n,).
    """
    return {"number": len(images), "images": _sha256(images), "labels": _sha256(labels)}


def changed_images(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Returns what differs between the images of two runs.

    Args:
        then: the digests of `train` and `val`, see `digest`.
        now: the same of the other run.

    Returns:
        A sentence without its end, or None if nothing differs.
    """
    parts = [text for name in NAMES if (text := _changed(NAMES[name], then[name], now[name]))]
    return f"{' and '.join(parts)} have changed" if parts else None


def _changed(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    if then["number"] != now["number"]:
        return f"the {name} images ({then['number']:,} then, {now['number']:,} now)"
    if then["images"] != now["images"]:
        return f"the {name} images (or their order)"
    return f"the labels of the {name} images" if then["labels"] != now["labels"] else None


def _sha256(values: Tensor) -> str:
    content = hashlib.sha256(str(tuple(values.shape)).encode())
    content.update(values.numpy().reshape(-1).view(np.uint8).data)  # without a copy
    return content.hexdigest()
