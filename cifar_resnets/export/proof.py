"""Proves an export: run again, it has to give the probabilities of the checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cifar_resnets.errors import CheckpointError, UserError
from cifar_resnets.export.programs import Runner
from cifar_resnets.inference.classifier import OWN_SOURCES, TrainedClassifier
from cifar_resnets.support.imports import import_attribute

Images = NDArray[np.uint8]

TOLERANCE = 1e-4  # of probabilities, for images of the network's size
RESIZED_TOLERANCE = 0.02  # for images that are resized: some pixels differ by a grey level, see `graph.resize`
SCALES = ((0.6, 0.85), (1.3, 1.75), (3.1, 2.2))  # of height and width
MOST_RESIZED = 64  # images of each scale
BATCH_SIZE = 100


@dataclass(frozen=True)
class Proof:
    """How an export compares with its checkpoint.

    Args:
        num_images: of the network's size; the predicted class is the same for all.
        difference: the largest one of a probability.
        num_resized: images of other sizes; 0 where the preprocessing is not inside.
        resized_difference: likewise, against an image that Pillow has resized.
    """

    num_images: int
    difference: float
    num_resized: int = 0
    resized_difference: float = 0.0


def prove(run: Runner, classifier: TrainedClassifier, images: Images, raw: bool, dynamic_batch: bool) -> Proof:
    """Compares an exported file with the classifier that it was made from.

    Args:
        run: runs the file.
        classifier: the trained network with its preprocessing.
        images: uint8 (n, image_size, image_size, 3).
        raw: whether the file takes normalised images, and returns logits.
        dynamic_batch: whether it takes more than one image.

    Raises:
        CheckpointError: when a predicted class is another one, or a probability differs by more than is allowed.
    """
    size = BATCH_SIZE if dynamic_batch else 1
    expected = _probabilities(classifier, images)
    if raw:
        found = _in_batches(lambda batch: _softmax(run(classifier.normalize(batch).contiguous().numpy())), images, size)
        return Proof(len(images), _compare(found, expected, TOLERANCE))
    difference = _compare(_in_batches(run, images, size), expected, TOLERANCE)
    differences, num = [], 0
    for other in other_sizes(images):
        reference = _probabilities(classifier, resized(other, (classifier.image_size, classifier.image_size)))
        differences.append(_compare(_in_batches(run, other, size), reference, RESIZED_TOLERANCE))
        num += len(other)
    return Proof(len(images), difference, num, max(differences))


def other_sizes(images: Images) -> Iterator[Images]:
    """Yields some of the images in other sizes and shapes, one for each of `SCALES`."""
    _, height, width, _ = images.shape
    some = images[np.linspace(0, len(images) - 1, min(MOST_RESIZED, len(images))).astype(int)]
    for vertical, horizontal in SCALES:
        yield resized(some, (max(round(height * vertical), 1), max(round(width * horizontal), 1)))


def resized(images: Images, size: tuple[int, int]) -> Images:
    """Resizes images to a height and a width by Pillow, as the decoder of the training does."""
    height, width = size
    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(each).resize((width, height), bilinear)) for each in images])


def _probabilities(classifier: TrainedClassifier, images: Images) -> NDArray[Any]:
    return _in_batches(lambda batch: classifier.probabilities(batch).cpu().numpy(), images, BATCH_SIZE)


def _in_batches(run: Runner, images: Images, size: int) -> NDArray[Any]:
    return np.concatenate([run(images[start : start + size]) for start in range(0, len(images), size)])


def _softmax(logits: NDArray[Any]) -> NDArray[Any]:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def _compare(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> float:
    """Returns the largest difference of a probability; raises CheckpointError if it, or a class, is another one."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise CheckpointError("--ckpt_path: the exported network gives no probabilities, nothing is written")
    difference = float(np.abs(found - expected).max())
    two = np.sort(expected, axis=1)[:, -2:]
    # within twice the tolerance either class may come first
    is_clear = two[:, 1] - two[:, 0] > (2 * tolerance if tolerance > TOLERANCE else 0)
    others = int((found.argmax(axis=1) != expected.argmax(axis=1))[is_clear].sum())
    if others or difference > tolerance:
        what = f"{others} of {len(found):,} classes are others, a probability differs by {difference:.2g}"
        raise CheckpointError(
            f"--ckpt_path: the exported network is another one ({what}, allowed is {tolerance:g}), nothing is written"
        )
    return difference


def proof_images(
    classifier: TrainedClassifier, root: str | None = None, num_images: int | None = None
) -> tuple[Images, str]:
    """Returns images (n, image_size, image_size, 3) for a proof, and what they are.

    They are the validation images of the training if they are at hand, otherwise scikit-learn's digits.

    Args:
        classifier: whose checkpoint names the images.
        root: where they are, if not where the checkpoint says.
        num_images: at most so many, evenly spaced; all if not given.

    Raises:
        UserError: when there are none in `root`.
    """
    try:
        images, what = _validation_images(classifier, root), "validation images"
    except UserError as error:
        if root is not None:
            raise
        images, what = _digits(), f"digits, for the validation images are not at hand ({error})"
    size = classifier.image_size
    if images.shape[1:3] != (size, size):
        images = resized(images, (size, size))
    num = min(num_images or len(images), len(images))
    return images[np.linspace(0, len(images) - 1, num).astype(int)], what


def _validation_images(classifier: TrainedClassifier, root: str | None) -> Images:
    data = classifier.data
    if not str(data.get("class_path", "")).startswith(OWN_SOURCES):
        raise CheckpointError("their data source is of another package")
    # by its name: the sources are Lightning's, which nothing else of an export takes
    source = import_attribute(*data["class_path"].rpartition(".")[::2])(**_arguments(data["init_args"], root))
    source.may_download = False
    source.prepare_data()
    source.setup("validate")
    batches = [images for images, _ in source.val_dataloader() or ()]
    if not batches:
        raise CheckpointError("there are none, data.val_fraction is 0")
    return torch.cat(batches).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def _arguments(init_args: Mapping[str, Any], root: str | None) -> dict[str, Any]:
    """Returns the arguments of a data source whose batches are the pixels themselves, from 0 to 255."""
    given = {name: value for name, value in init_args.items() if name != "augment"}
    pixels = {"mean": [0.0] * 3, "std": [1 / 255] * 3}
    return {**given, **pixels, **({} if root is None else {"root": root})}


def _digits() -> Images:
    loader = import_attribute("cifar_resnets.data.digits", "Digits")()
    images: Images = loader.load("test")[0]
    return images
