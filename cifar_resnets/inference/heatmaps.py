"""Writes a picture of each image: where the network looked for its prediction, and for the class that comes second."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import torch
from torch import Tensor

from cifar_resnets.cam.explainer import Explainer
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.evaluation.mistakes import CHUNK, Samples
from cifar_resnets.figures.explanation import draw_explanation
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.inference.decoding import Pixels
from cifar_resnets.support.atomic_file import naming

LONGEST = 60  # characters of an image's name in that of its picture


class HeatmapWriter:
    """Writes `NUMBER-NAME.png` for each image into a folder.

    Args:
        folder: which exists.
        classifier: of two classes or more.
        method: a name in `cam.gradcam.METHODS`.
        layers: names of modules, over which heatmaps are averaged; `choose_layer` chooses one if not given.

    Raises:
        ConfigurationError: for a layer that is not there or returns no feature map, or where there are no heatmaps.
    """

    def __init__(
        self, folder: Path, classifier: TrainedClassifier, method: str = "gradcam", layers: Sequence[str] | None = None
    ) -> None:
        self.folder, self._classifier = folder, classifier
        self._explainer = Explainer(method, layers)
        self._explainer.prepare(classifier.network, (3, classifier.image_size, classifier.image_size))
        self._check()

    @property
    def note(self) -> str:
        """The method, and the layers with the sizes of their feature maps."""
        return self._explainer.note

    def _check(self) -> None:
        if self._explainer.problem:
            raise ConfigurationError(f"--heatmaps: there are none of this network: {self._explainer.problem}")

    def write(self, paths: Sequence[str], numbers: Sequence[int], pixels: Pixels, probabilities: Tensor) -> list[str]:
        """Writes the pictures of images (n, h, w, 3), and returns the names of their files.

        Args:
            paths: of the images.
            numbers: of the images, each of which only one image has.
            pixels: uint8.
            probabilities: (n, num_classes).
        """
        names = [picture_name(number, path) for number, path in zip(numbers, paths, strict=True)]
        for start in range(0, len(paths), CHUNK):
            rows = slice(start, start + CHUNK)
            self._write(names[rows], pixels[rows], probabilities[rows].cpu())
        return names

    def _write(self, names: Sequence[str], pixels: Pixels, probabilities: Tensor) -> None:
        highest, classes = probabilities.sort(dim=1, descending=True, stable=True)  # of equals the first
        images = self._classifier.normalize(pixels)
        number = torch.arange(len(names))
        columns = (number, classes[:, 1], classes[:, 0], highest[:, 1], highest[:, 0], number.float())
        heat, _ = self._explainer.explain(self._classifier.network, Samples(images, *columns))
        self._check()
        assert heat is not None
        for row, name in enumerate(names):
            both = zip(classes[row, :2].tolist(), highest[row, :2].tolist(), strict=True)
            about = [(self._classifier.class_names[number], number, p) for number, p in both]
            with naming(self.folder / name):
                draw_explanation(pixels[row], heat[row], about).save(self.folder / name)


def picture_name(number: int, path: str) -> str:
    """Returns the name of an image's picture: its number, and what of its own name is safe in any file system."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePath(path).stem)[:LONGEST].strip("._")
    return f"{number:06}-{stem or 'image'}.png"
