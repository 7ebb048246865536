"""Measures how fast training batches are made: by torchvision's transforms in a DataLoader, and by the resident loader.

All make batches of 128 images with random crop (padding 4), flip and normalisation, on the CPU, in one process, in
turn. From the repository's root, on a machine that does nothing else (5 minutes on two cores):

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --images FOLDER --json figures.json

FOLDER holds images as `train/<class>/<image>`; without it the images are random numbers. `--num-images 10000` is
quicker, but flatters the resident loader, whose images then fit better into the processor's cache. Where other
programs keep the processor busy, `--threads 1` gives steadier figures: two threads of torch wait for each other in
every operation, and beside one busy process on two CPUs that was seen to cost nine tenths of the speed and more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.resident import TrainLoader

BATCH_SIZE = 128
PADDING = 4
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
MIN_SECONDS = 2.0  # a fast loader goes through several epochs, so that the clock's and the system's noise average out
BASELINE = "PIL transforms"

Data = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Loader(Iterable[tuple[torch.Tensor, torch.Tensor]], Sized, Protocol):
    """What gives batches and knows how many."""


class Candidate(NamedTuple):
    """A loader with the name of its row and its number of workers."""

    name: str
    workers: int
    loader: Loader


class InMemory(Dataset[tuple[torch.Tensor, int]]):
    """Images of an array, each made a PIL image and transformed, as `torchvision.datasets.CIFAR10` does it."""

    def __init__(self, data: Data, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = data[0], data[1].tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def synthetic(num_images: int) -> Data:
    """Random images of 32x32 pixels: no step's time depends on what an image shows."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, num_images)


def real(folder: str, num_images: int) -> Data:
    """A random part of the training images of a folder, at most `num_images`, as 32x32 pixels."""
    from cifar_resnets.data.image_folder import ImageFolder  # it brings lightning, which nothing else here needs

    images, labels = ImageFolder(folder, image_size=32).load("train")
    chosen = np.random.default_rng(0).permutation(len(images))[:num_images]
    return images[chosen], labels[chosen]


def make_transforms() -> dict[str, Callable[[Image.Image], torch.Tensor]]:
    """The same augmentation in torchvision's three ways."""
    old = [transforms.RandomCrop(32, padding=PADDING), transforms.RandomHorizontalFlip()]
    new = [v2.RandomCrop(32, padding=PADDING), v2.RandomHorizontalFlip()]
    scaled = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return {
        BASELINE: transforms.Compose([*old, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
        "v2 transforms of PIL images": v2.Compose([*new, v2.ToImage(), *scaled]),
        "v2 transforms of tensors": v2.Compose([v2.ToImage(), *new, *scaled]),
    }


def torchvision_loader(data: Data, transform: Callable[[Image.Image], torch.Tensor], workers: int) -> Loader:
    """The loader that a careful user writes: its workers live on from epoch to epoch."""
    keep = workers > 0
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": keep, "drop_last": True}
    return DataLoader(InMemory(data, transform), batch_size=BATCH_SIZE, shuffle=True, **options)


def resident_loader(data: Data, cutout_size: int) -> Loader:
    """The project's loader with the same crop and flip."""
    images, labels = (torch.from_numpy(values) for values in data)
    augmentation = Augmentation(crop_padding=PADDING, cutout_size=cutout_size)
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "mean": MEAN, "std": STD, "seed": 0, "num_classes": 10}
    return TrainLoader(images, labels, augmentation=augmentation, **options)


def make_candidates(data: Data) -> list[Candidate]:
    """All that are compared, warm: the workers have started, and each has made batches."""
    candidates = [
        Candidate(name, workers, torchvision_loader(data, transform, workers))
        for name, transform in make_transforms().items()
        for workers in (0, 2)
    ]
    candidates.append(Candidate("TrainLoader", 0, resident_loader(data, 0)))
    candidates.append(Candidate("TrainLoader, cutout 8", 0, resident_loader(data, 8)))
    for candidate in candidates:
        warm_up(candidate.loader)
    return candidates


def warm_up(loader: Loader, num_batches: int = 20) -> None:
    """Takes a few batches, which must be what the others' are."""
    for _, (images, labels) in zip(range(num_batches), loader, strict=False):
        assert images.shape == (BATCH_SIZE, 3, 32, 32) and images.dtype == torch.float32
        assert labels.shape == (BATCH_SIZE,)


def images_per_second(loader: Loader) -> float:
    """The rate over whole epochs, their start included."""
    num, start = 0, time.perf_counter()
    while time.perf_counter() - start < MIN_SECONDS:
        num += sum(len(labels) for _, labels in loader)
    return num / (time.perf_counter() - start)


def measure(candidates: list[Candidate], rounds: int) -> list[list[float]]:
    """Rates of each candidate; one after the other in each round, so that a drift of the machine hits all."""
    by_round = [[images_per_second(candidate.loader) for candidate in candidates] for _ in range(rounds)]
    return [list(rates) for rates in zip(*by_round, strict=True)]


def make_rows(candidates: list[Candidate], rates: list[list[float]]) -> list[dict[str, Any]]:
    """Median and ratio to the baseline with the number of workers that serves it best."""
    medians = [statistics.median(values) for values in rates]
    best = max(median for median, candidate in zip(medians, candidates, strict=True) if candidate.name == BASELINE)
    return [
        {"name": c.name, "workers": c.workers, "images_per_second": median, "ratio": median / best, "rounds": values}
        for c, median, values in zip(candidates, medians, rates, strict=True)
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of fewer than 80 columns."""
    lines = [f"| {'loader':27} | workers | images/s | {'lowest to highest':>18} | ratio |"]
    lines.append(f"|{'-' * 29}|{'-' * 8}:|{'-' * 9}:|{'-' * 19}:|{'-' * 6}:|")
    for row in rows:
        spread = f"{min(row['rounds']):,.0f} to {max(row['rounds']):,.0f}"
        figures = f"{row['workers']:7} | {row['images_per_second']:8,.0f} | {spread:>18} | {row['ratio']:5.1f}"
        lines.append(f"| {row['name']:27} | {figures} |")
    return "\n".join(lines)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on; the load is that before the first measurement."""
    return {
        "processor": processor_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def processor_name() -> str:
    """The processor's model where Linux tells, else its family."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.machine()


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--images", metavar="FOLDER", help="real images in FOLDER/train/<class>/, instead of noise")
    parser.add_argument("--num-images", type=int, default=50_000, help="images an epoch, at most (default: 50000)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, whose median counts (default: 3)")
    parser.add_argument("--threads", type=int, help="of torch in the main process (default: torch's own choice)")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to FILE")
    arguments = parser.parse_args()
    threads = 1 if arguments.threads is None else arguments.threads
    if arguments.num_images < BATCH_SIZE or min(arguments.rounds, threads) < 1:
        parser.error(f"give --num-images {BATCH_SIZE} or more, --rounds and --threads 1 or more")
    return arguments


def main() -> None:
    """Measures and prints."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine = describe_machine()
    data = real(arguments.images, arguments.num_images) if arguments.images else synthetic(arguments.num_images)
    candidates = make_candidates(data)
    rows = make_rows(candidates, measure(candidates, arguments.rounds))
    images = f"{len(data[0]):,} {'real' if arguments.images else 'synthetic'} images"
    print(markdown(rows))
    print(f"\nRatio: to the better row of {BASELINE}. {images}, batches of {BATCH_SIZE};")
    print(f"median of {arguments.rounds} rounds, in each of which every loader has its turn.")
    print(f"{machine['processor']}, {machine['cpus']} CPUs, threads: {machine['threads']}, load {machine['load']},")
    print(f"Python {machine['python']}, torch {machine['torch']}, torchvision {machine['torchvision']}")
    if arguments.json:
        figures = {"machine": machine, "images": images, "batch_size": BATCH_SIZE, "rows": rows}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
