"""How fast `predict` classifies files: against a loop that opens, resizes and classifies one image after another.

Both read the same files, in turns within one process; ours with the start of its workers and its table of predictions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.networks import require_known
from benchmarks.shared import (
    NUM_CLASSES,
    add_accelerator,
    device_of,
    now,
    paragraph,
    plural,
    positive,
    span,
    table,
    target_note,
)
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.inference.paths import Found, find
from cifar_resnets.inference.row_files import CsvFile
from cifar_resnets.inference.rows import classify_files
from cifar_resnets.models.registry import create_network

WAYS = {"ours": "predict", "loop": "one by one"}
TARGET = 5.0  # times as many images a second
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
LARGEST_DIFFERENCE = 1e-3  # of probabilities: above it, the two would not compute the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add = parser.add_argument
    add("--network", metavar="NAME", default="cifar_resnet20", help="default: %(default)s")
    add("--images", type=Path, metavar="DIR", help="folder of images; generated PNG files if not given")
    add("--num-images", type=positive, metavar="N", default=4000, help="at most (default: %(default)s)")
    add("--side", type=positive, default=32, help="of the generated images, in pixels (default: %(default)s)")
    add("--image-size", type=positive, default=32, help="that the network takes, in pixels (default: %(default)s)")
    add("--rounds", type=positive, default=3, help="of each, after one that does not count (default: %(default)s)")
    add_accelerator(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the images per second of both."""
    device = device_of(args.accelerator)
    require_known(args.network)
    network = create_network(args.network, NUM_CLASSES).to(device, memory_format=torch.channels_last)
    names = [str(number) for number in range(NUM_CLASSES)]
    classifier = TrainedClassifier(network, names, args.image_size, MEAN, STD)
    with tempfile.TemporaryDirectory() as folder:
        images = args.images or write_images(Path(folder) / "images", args.num_images, args.side)
        found = find([str(images)])[: args.num_images]
        return {"device": str(device), "num_images": len(found), "target": TARGET} | compare(
            classifier, found, Path(folder), args.rounds
        )


def write_images(folder: Path, num: int, side: int) -> Path:
    """Writes smooth random images, which PNG compresses about as well as photographs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 4 + 1, side // 4 + 1, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:06}.png")
    return folder


def compare(classifier: TrainedClassifier, found: list[Found], folder: Path, num_rounds: int) -> dict[str, Any]:
    """Times both in turns.

    Raises:
        RuntimeError: when their probabilities differ.
    """
    ways: dict[str, Callable[[], np.ndarray[Any, Any]]] = {
        "ours": lambda: by_predict(classifier, found, folder / "predictions.csv"),
        "loop": lambda: one_by_one(classifier, found),
    }
    highest = {way: classify() for way, classify in ways.items()}  # and warms up
    if (difference := float(abs(highest["ours"] - highest["loop"]).max())) > LARGEST_DIFFERENCE:
        raise RuntimeError(f"the probabilities differ by {difference:.1e}")
    rounds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(num_rounds):
        for way, classify in ways.items():
            start = now(classifier.device)
            classify()
            rounds[way].append(len(found) / (now(classifier.device) - start))
    rates = {way: statistics.median(values) for way, values in rounds.items()}
    return {"images_per_second": rates, "rounds": rounds, "ratio": rates["ours"] / rates["loop"]}


def by_predict(classifier: TrainedClassifier, found: list[Found], path: Path) -> np.ndarray[Any, Any]:
    """Classifies files as the command does; returns the highest probability of each."""
    path.unlink(missing_ok=True)
    highest = []
    with light_main(), CsvFile(path, top_k=3) as file:
        for row in classify_files([classifier], found, classifier.batch_size):
            file.add(row)
            assert row.prediction is not None
            highest.append(row.prediction.probability)
    return np.array(highest)


@contextmanager
def light_main() -> Iterator[None]:
    """Hides the main module: workers import it, and this program takes seconds to import, the command does not."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def one_by_one(classifier: TrainedClassifier, found: list[Found]) -> np.ndarray[Any, Any]:
    """Opens, resizes and classifies one image after another with torchvision, as examples in tutorials do."""
    from torchvision import transforms  # imports for seconds, which the other parts need not wait for

    size = (classifier.image_size, classifier.image_size)
    prepare = transforms.Compose([transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    highest = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in found:
            image = prepare(Image.open(each.path).convert("RGB"))
            probabilities = classifier.network(image[None].to(classifier.device)).softmax(dim=1)
            highest.append(probabilities.max().item())
    return np.array(highest)


def markdown(report: dict[str, Any]) -> str:
    """Formats a row for each way, and whether the target was reached."""
    rows = [
        [name, f"{report['images_per_second'][way]:,.1f}", span(report["rounds"][way])] for way, name in WAYS.items()
    ]
    reached = target_note(report["ratio"] >= report["target"], f"{report['target']:g}")
    note = f"ratio {report['ratio']:.2f} ({reached})"
    given = report["arguments"]
    what = f"{plural(report['num_images'], 'file')}, {given['network']} at {given['image_size']} pixels"
    text = paragraph(f"{what}; medians of {plural(given['rounds'], 'round')}.")
    return "\n\n".join([table(["", "images/s", "lowest to highest"], rows), note, text])
