"""One HTML file that shows predicted images, those that the network is least sure of first; no torch, no Lightning."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_resnets import __version__
from cifar_resnets.figures.panels import shrunk
from cifar_resnets.reports.image_samples import address
from cifar_resnets.reports.page import environment, write_atomically
from cifar_resnets.support.text import printable

MOST = 500  # images of a page, of a few KB each
MOST_FAILURES = 100
TOP = 3  # classes of an image
LARGEST_PNG = 40  # pixels of a side; larger images are JPEG, a fifth of the size


@dataclass(order=True)
class _Shown:
    surety: float  # minus the probability: the smallest of a heap is the surest
    number: int  # minus that of the image, so that of equals the first stay
    path: str = field(compare=False)
    classes: Sequence[tuple[str, float]] = field(compare=False)
    pixels: NDArray[np.uint8] = field(compare=False)


class ContactSheet:
    """Keeps the images that a network is least sure of, and those that could not be read, for one page.

    Args:
        checkpoint: how the network is called in the page.
        most: images of the page.
    """

    def __init__(self, checkpoint: str, most: int = MOST) -> None:
        self.checkpoint, self.most = checkpoint, most
        self.num_images = 0
        self._kept: list[_Shown] = []
        self._failures: list[tuple[str, str]] = []
        self.num_failures = 0

    def add(self, path: str, classes: Sequence[tuple[str, float]], pixels: NDArray[np.uint8]) -> None:
        """Takes in an image (h, w, 3) with its classes and their probabilities, the highest first."""
        surety = -classes[0][1]
        if len(self._kept) < self.most or surety > self._kept[0].surety:
            shown = _Shown(surety, -self.num_images, path, classes, shrunk(pixels[None])[0].copy())
            (heapq.heappush if len(self._kept) < self.most else heapq.heapreplace)(self._kept, shown)
        self.num_images += 1

    def add_failure(self, path: str, problem: str) -> None:
        """Takes in a file that could not be read."""
        self.num_failures += 1
        if len(self._failures) < MOST_FAILURES:
            self._failures.append((path, problem))

    def render(self) -> str:
        """Returns the page, the same for the same images."""
        cards = [
            {
                "path": printable(each.path),
                "address": _address(each.pixels),
                "classes": each.classes[:TOP],
            }
            for each in sorted(self._kept, reverse=True)
        ]
        failures = [(printable(path), printable(problem)) for path, problem in self._failures]
        return (
            environment()
            .get_template("contact_sheet.html.j2")
            .render(
                version=__version__,
                checkpoint=printable(self.checkpoint),
                cards=cards,
                num_images=self.num_images,
                failures=failures,
                num_failures=self.num_failures,
            )
        )

    def write(self, path: Path) -> None:
        """Writes the page; raises OutputError when it cannot be written."""
        write_atomically(path, self.render().encode("utf-8", errors="replace"))


def _address(image: NDArray[np.uint8]) -> str:
    """Returns an image (h, w, 3) inside an address."""
    is_small = max(image.shape[:2]) <= LARGEST_PNG
    return address(image, "png" if is_small else "jpeg", quality=85)
