"""Splits the training images of a source into training and validation images."""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.errors import DataError, require

_require = functools.partial(require, "data")


def split_indices(
    labels: NDArray[np.int64], val_fraction: float, num_train: int | None, seed: int, class_names: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits images into training and validation images, stratified by class.

    Args:
        labels: (n,), counting from 0.
        val_fraction: fraction of the images to validate on, from 0 to below 1.
        num_train: number of the others to train on; all if None. The validation images do not depend on it.
        seed: of the shuffling.
        class_names: in the order of the labels.

    Returns:
        Sorted indices of the training and of the validation images.

    Raises:
        DataError: when a class has too few images.
        ConfigurationError: when `num_train` is larger than the training set, or smaller than the number of classes.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < (2 if val_fraction else 1):
        few = class_names[int(counts.argmin())]
        wanted = "one or more are needed"
        if val_fraction:
            wanted = "two or more are needed to validate on one: add some, or give --data.val_fraction 0"
        raise DataError(f"class {few!r}: {counts.min()} training images, {wanted}")
    shuffled = shuffled_indices(len(labels), seed)
    val, rest = shuffled[:0], shuffled
    if val_fraction:
        num_val = min(max(round(val_fraction * len(labels)), len(class_names)), len(labels) - len(class_names))
        val, rest = _take_stratified(shuffled, labels, num_val, spare=1)
    if num_train is not None:
        allowed = f"{len(class_names)} to {len(rest)}, what the validation split leaves"
        _require(len(class_names) <= num_train <= len(rest), "num_train", num_train, allowed)
        rest, _ = _take_stratified(rest, labels, num_train, spare=0)
    return np.sort(rest), np.sort(val)


def shuffled_indices(num: int, seed: int) -> NDArray[np.intp]:
    """Returns the indices below `num` in the order of the SHA-256 of seed and index.

    NumPy promises the order of a generator's permutation for the same build alone (NEP 19). With another one, a resumed
    run could validate on images that it was trained on.
    """
    digests = (hashlib.sha256(b"%d %d" % (seed, index)).digest()[:8] for index in range(num))
    return np.argsort(np.frombuffer(b"".join(digests), dtype=">u8"), kind="stable")


def _take_stratified(
    candidates: NDArray[np.intp], labels: NDArray[np.int64], num: int, spare: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits off the first `num` candidates with each class in proportion, by the largest-remainder method.

    At least one image of each class is taken, and at least `spare` of each class are left.
    """
    counts = np.bincount(labels[candidates])
    shares = counts * num / len(candidates)
    quota = np.clip(np.floor(shares).astype(int), 1, counts - spare)
    while (missing := num - quota.sum()) != 0:
        step = np.sign(missing)
        open_classes = quota < counts - spare if step > 0 else quota > 1
        quota[np.argmax(np.where(open_classes, step * (shares - quota), -np.inf))] += step
    position = np.empty(len(candidates), dtype=int)  # of each candidate within its class
    for label, count in enumerate(counts):
        position[labels[candidates] == label] = np.arange(count)
    taken = position < quota[labels[candidates]]
    return candidates[taken], candidates[~taken]
