"""Proves an export: run again, it has to give the probabilities of the checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cifar_resnets.errors import CheckpointError, ConfigurationError, UserError
from cifar_resnets.export.graph import ImagesToProbabilities, resize
from cifar_resnets.export.programs import Runner
from cifar_resnets.inference.classifier import OWN_SOURCES, TrainedClassifier
from cifar_resnets.support.imports import import_attribute

Images = NDArray[np.uint8]

TOLERANCE = 1e-4  # of probabilities
MOST_LEVELS = 2  # grey levels by which a pixel may differ from Pillow's, in tall images: see `graph.resize`
SCALES = ((0.6, 0.85), (1.3, 1.75), (3.1, 2.2))  # of height and width
MOST_RESIZED = 64  # images of each scale
BATCH_SIZE = 100


@dataclass(frozen=True)
class Proof:
    """How an export compares with its checkpoint; the predicted class is the same for all images.

    Args:
        num_images: of the network's size.
        difference: the largest one of a probability, of all images.
        resized: how images of other sizes compare; None where the preprocessing is not inside.
    """

    num_images: int
    difference: float
    resized: "Resized | None" = None


@dataclass(frozen=True)
class Resized:
    """How images that the graph resizes compare with those that Pillow resizes, as the decoder of the training does.

    Args:
        num_images: of sizes that are not the network's.
        levels: the largest difference of a pixel in grey levels.
        pixels: part of the pixels that differ, from 0 to 1.
        difference: the largest one of a probability that comes of it.
    """

    num_images: int
    levels: int
    pixels: float
    difference: float


def prove(run: Runner, classifier: TrainedClassifier, images: Images, raw: bool, dynamic_batch: bool) -> Proof:
    """Compares an exported file with the classifier that it was made from.

    Images of the network's size have to give the checkpoint's probabilities. Images of other sizes have to give those
    of the preprocessing that was exported, `graph.resize`, and its pixels have to be Pillow's but for `MOST_LEVELS`.

    Args:
        run: runs the file.
        classifier: the trained network with its preprocessing.
        images: uint8 (n, image_size, image_size, 3).
        raw: whether the file takes normalised images, and returns logits.
        dynamic_batch: whether it takes more than one image.

    Raises:
        CheckpointError: when a predicted class is another one, or a probability or pixel differs by more than allowed.
    """
    size = BATCH_SIZE if dynamic_batch else 1
    expected = _probabilities(classifier, images)
    if raw:
        found = _in_batches(lambda batch: _softmax(run(classifier.normalize(batch).contiguous().numpy())), images, size)
        return Proof(len(images), _compare(found, expected))
    differences = [_compare(_in_batches(run, images, size), expected)]
    parts = []
    for others in other_sizes(images):
        differences.append(_compare(_in_batches(run, others, size), _in_graph(classifier, others)))
        parts.append(_compare_resized(classifier, others))
    num, levels, pixels, difference = (list(each) for each in zip(*map(astuple, parts), strict=True))
    together = Resized(sum(num), max(levels), float(np.mean(pixels)), max(difference))
    return Proof(len(images), max(differences), together)


def _in_graph(classifier: TrainedClassifier, images: Images) -> NDArray[Any]:
    """Computes probabilities with the preprocessing that is exported, before it is."""
    module = ImagesToProbabilities(classifier).eval()
    with torch.inference_mode():
        return _in_batches(lambda batch: module(torch.from_numpy(batch)).numpy(), images, BATCH_SIZE)


def _compare_resized(classifier: TrainedClassifier, images: Images) -> Resized:
    size = classifier.image_size
    pillow = resized(images, (size, size))
    ours = resize(torch.from_numpy(images), size).numpy()
    levels = np.abs(ours - pillow)
    if levels.max() > MOST_LEVELS:
        raise _refusal(f"a resized pixel differs by {levels.max():.0f} grey levels, allowed are {MOST_LEVELS}")
    both = (_probabilities(classifier, each) for each in (ours.astype(np.uint8), pillow))
    return Resized(len(images), int(levels.max()), float((levels > 0).mean()), float(np.abs(np.subtract(*both)).max()))


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


def _compare(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Returns the largest difference of a probability; raises CheckpointError for a large one, or another class."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise _refusal("it gives no probabilities")
    difference = float(np.abs(found - expected).max())
    others = int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if others or difference > TOLERANCE:
        what = f"{others:,} of {len(found):,} classes are others, and a probability differs by {difference:.2g}"
        raise _refusal(f"{what}, allowed is {TOLERANCE:g}")
    return difference


def _refusal(what: str) -> CheckpointError:
    return CheckpointError(f"--ckpt_path: the exported network is not the checkpoint's: {what}; nothing is written")


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
    if root is not None and "root" not in data["init_args"]:
        raise ConfigurationError(f"--data_root: {data['class_path']} has no folder of images, leave it out")
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
