"""Classifies files batch by batch, in the batches in which a test would evaluate them: one row for each file."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from cifar_resnets.data.loaders import evaluation_parts
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.inference.decoding import Batch, Pixels, decode_batches
from cifar_resnets.inference.heatmaps import HeatmapWriter
from cifar_resnets.inference.paths import Found
from cifar_resnets.inference.prediction import Prediction, make_prediction


@dataclass(frozen=True, eq=False)
class Row:
    """A file with its prediction, or with the reason why it could not be read."""

    path: str
    problem: str = ""
    prediction: Prediction | None = None
    pixels: Pixels | None = None  # uint8 (h, w, 3), as the network sees it
    heatmap: str = ""  # name of its picture, if there is one


def classify_files(
    classifiers: Sequence[TrainedClassifier],
    found: Sequence[Found],
    batch_size: int,
    tta: bool = False,
    num_workers: int | None = None,
    heatmaps: HeatmapWriter | None = None,
) -> Iterator[Row]:
    """Classifies files, and returns a row for each in their order; only some batches of images are in memory.

    Args:
        classifiers: the same one on each device; batches take turns.
        found: one file or more.
        batch_size: largest number of images of a batch over all devices.
        tta: whether the logits are averaged over views of the images.
        num_workers: that decode; as many as this process may use cores if not given.
        heatmaps: writes a picture of each image, if given.
    """
    chosen = classifiers[: len(found)]  # each device has an image of each batch
    parts = evaluation_parts(len(found), batch_size, len(chosen))
    batches = decode_batches(found, parts, chosen[0].image_size, chosen[0].background, chosen[0].resize, num_workers)
    first = 0
    for batch, probabilities in _classified(chosen, batches, tta):
        yield from _rows(batch, probabilities, first, chosen[0].class_names, heatmaps)
        first += len(batch.found)


def _classified(
    classifiers: Sequence[TrainedClassifier], batches: Iterator[Batch], tta: bool
) -> Iterator[tuple[Batch, Tensor]]:
    """Returns batches with the probabilities of their images; a GPU works on the next ones meanwhile."""
    begun: deque[tuple[Batch, Tensor]] = deque()
    for index, batch in enumerate(batches):
        classifier = classifiers[index % len(classifiers)]
        begun.append((batch, classifier.probabilities(batch.pixels, tta)))
        if len(begun) >= len(classifiers):
            yield begun.popleft()
    yield from begun


def _rows(
    batch: Batch, probabilities: Tensor, first: int, class_names: Sequence[str], heatmaps: HeatmapWriter | None
) -> Iterator[Row]:
    numbers = [first + row for row, found in enumerate(batch.found) if not found.problem]
    pictures = [""] * len(numbers)
    if heatmaps is not None and numbers:
        paths = [found.path for found in batch.found if not found.problem]
        pictures = heatmaps.write(paths, numbers, batch.pixels, probabilities)
    read = zip(probabilities.tolist(), batch.pixels, pictures, strict=True)
    for found in batch.found:
        if found.problem:
            yield Row(found.path, found.problem)
        else:
            values, pixels, picture = next(read)
            yield Row(found.path, "", make_prediction(class_names, values), pixels, picture)
