"""How fast training batches are made: by torchvision's transforms in a DataLoader, and by the resident loader.

On the CPU, all make batches of 128 images with random crop (padding 4), flip and normalisation, in one process, in
turn. On a GPU, the resident loader alone makes batches of 512, and its time is compared with that of a training step.

Where other programs keep the processor busy, `--threads 1` gives steadier figures: two threads of torch wait for each
other in every operation, and beside one busy process on two CPUs that was seen to cost nine tenths of the speed and
more. Few images flatter the resident loader, whose images then fit better into the processor's cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.networks import make_step, seconds_per_step
from benchmarks.shared import (
    above_zero,
    add_accelerator,
    device_of,
    not_negative,
    now,
    paragraph,
    percent,
    plural,
    positive,
    span,
    table,
    target_note,
)
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.data.loaders import TrainLoader
from cifar_resnets.errors import ConfigurationError

BATCH_SIZE, GPU_BATCH_SIZE = 128, 512
PADDING = 4
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
BASELINE = "PIL transforms"
RESIDENT, WITH_CUTOUT = "TrainLoader", "TrainLoader, cutout 8"
TARGET_RATIO = 25.0
NETWORK, PRECISION = "cifar_resnet18", "bf16-mixed"  # of the step with which a GPU's loader is compared
TARGET_SHARE = 0.02
WORKERS_HELP = "processes of a DataLoader (default: 0 and 2)"
SECONDS_HELP = "a measurement is of whole epochs, and of so long at least (default: %(default)s)"

Data = tuple[NDArray[np.uint8], NDArray[np.int64]]


class Loader(Iterable[tuple[torch.Tensor, torch.Tensor]], Sized, Protocol):
    """An iterable of batches with a length."""


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    given = parser.add_argument
    given("--images", metavar="DIR", help="real images in DIR/train/<class>/, instead of noise")
    given("--num-images", type=positive, default=50_000, metavar="N", help="images an epoch, at most (default: 50000)")
    given("--workers", type=not_negative, nargs="+", default=[0, 2], metavar="N", help=WORKERS_HELP)
    given("--rounds", type=positive, default=3, help="measurements, whose median counts (default: %(default)s)")
    given("--seconds", type=above_zero, default=2.0, help=SECONDS_HELP)
    add_accelerator(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns rates on the CPU, or shares of a training step on a GPU."""
    device = device_of(args.accelerator)
    batch_size = BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
    data = real(args.images, args.num_images) if args.images else synthetic(args.num_images)
    if len(data[0]) < batch_size:
        raise ConfigurationError(f"--num-images: {len(data[0])} images are no batch, give {batch_size} or more")
    report = {"device": str(device), "num_images": len(data[0]), "batch_size": batch_size}
    return report | (on_cpu(data, args) if device.type == "cpu" else on_gpu(data, device, args))


def synthetic(num_images: int) -> Data:
    """Draws images of 32x32 pixels: no step's time depends on what an image shows."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, num_images)


def real(folder: str, num_images: int) -> Data:
    """Returns at most `num_images` random training images of a folder, scaled to 32x32 pixels."""
    images, labels = ImageFolder(folder, image_size=32).load("train")
    chosen = np.random.default_rng(0).permutation(len(images))[:num_images]
    return images[chosen], labels[chosen]


# On the CPU.


def on_cpu(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Times all loaders, one after the other in each round, so that a drift of the machine affects all."""
    candidates = make_candidates(data, args.workers)
    by_round = [[images_per_second(each.loader, args.seconds) for each in candidates] for _ in range(args.rounds)]
    rows = make_rows(candidates, [list(rates) for rates in zip(*by_round, strict=True)])
    return {"rows": rows, "target": TARGET_RATIO}


def make_candidates(data: Data, workers: list[int]) -> list[Candidate]:
    """Builds all loaders and takes a few batches of each, so that their workers have started."""
    candidates = [
        Candidate(name, num, torchvision_loader(data, transform, num))
        for name, transform in make_transforms().items()
        for num in workers
    ]
    cpu = torch.device("cpu")
    candidates += [Candidate(RESIDENT, 0, resident_loader(data, cpu, BATCH_SIZE))]
    candidates += [Candidate(WITH_CUTOUT, 0, resident_loader(data, cpu, BATCH_SIZE, cutout_size=8))]
    for candidate in candidates:
        warm_up(candidate.loader, BATCH_SIZE)
    return candidates


def make_transforms() -> dict[str, Callable[[Image.Image], torch.Tensor]]:
    """Builds the same augmentation in torchvision's three ways."""
    old = [transforms.RandomCrop(32, padding=PADDING), transforms.RandomHorizontalFlip()]
    new = [v2.RandomCrop(32, padding=PADDING), v2.RandomHorizontalFlip()]
    scaled = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return {
        BASELINE: transforms.Compose([*old, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
        "v2 on PIL images": v2.Compose([*new, v2.ToImage(), *scaled]),
        "v2 on tensors": v2.Compose([v2.ToImage(), *new, *scaled]),
    }


def torchvision_loader(data: Data, transform: Callable[[Image.Image], torch.Tensor], workers: int) -> Loader:
    """Builds a DataLoader whose workers persist from epoch to epoch."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "drop_last": True}
    return DataLoader(InMemory(data, transform), batch_size=BATCH_SIZE, shuffle=True, **options)


def resident_loader(data: Data, device: torch.device, batch_size: int, cutout_size: int = 0) -> TrainLoader:
    """Builds the project's loader with the same crop and flip."""
    images, labels = (torch.from_numpy(values).to(device) for values in data)
    augmentation = Augmentation(crop_padding=PADDING, cutout_size=cutout_size)
    options: dict[str, Any] = {"batch_size": batch_size, "mean": MEAN, "std": STD, "seed": 0, "num_classes": 10}
    return TrainLoader(images, labels, augmentation=augmentation, **options)


def warm_up(loader: Loader, batch_size: int, num_batches: int = 20) -> None:
    """Takes a few batches, and checks that they have the shapes of all others."""
    for _, (images, labels) in zip(range(num_batches), loader, strict=False):
        assert images.shape == (batch_size, 3, 32, 32) and images.dtype == torch.float32
        assert labels.shape == (batch_size,)


def images_per_second(loader: Loader, min_seconds: float) -> float:
    """Returns the rate over whole epochs, their start included; over several epochs of a fast loader."""
    num, start = 0, time.perf_counter()
    while time.perf_counter() - start < min_seconds:
        num += sum(len(labels) for _, labels in loader)
    return num / (time.perf_counter() - start)


def make_rows(candidates: list[Candidate], rates: list[list[float]]) -> list[dict[str, Any]]:
    """Returns medians, and ratios to the baseline with its best number of workers."""
    medians = [statistics.median(values) for values in rates]
    best = max(median for median, candidate in zip(medians, candidates, strict=True) if candidate.name == BASELINE)
    return [
        {"name": c.name, "workers": c.workers, "images_per_second": median, "ratio": median / best, "rounds": values}
        for c, median, values in zip(candidates, medians, rates, strict=True)
    ]


# On a GPU.


def on_gpu(data: Data, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Times a batch of the resident loader, and a training step on such a batch, in turns."""
    torch.backends.cudnn.benchmark = True
    cutouts = {RESIDENT: 0, WITH_CUTOUT: 8}
    loaders = {name: resident_loader(data, device, GPU_BATCH_SIZE, size) for name, size in cutouts.items()}
    step = make_step(NETWORK, GPU_BATCH_SIZE, device, PRECISION, channels_last=True)
    for loader in loaders.values():
        warm_up(loader, GPU_BATCH_SIZE)
    for _ in range(5):
        step()
    seconds: dict[str, list[float]] = {name: [] for name in (*loaders, NETWORK)}
    for _ in range(args.rounds):
        for name, loader in loaders.items():
            seconds[name].append(seconds_per_batch(loader, device, args.seconds))
        seconds[NETWORK].append(seconds_per_step(step, device, args.seconds))
    return {"rows": make_gpu_rows(seconds), "target": TARGET_SHARE}


def seconds_per_batch(loader: TrainLoader, device: torch.device, min_seconds: float) -> float:
    """Returns the seconds a batch on a device, which is synchronised before the clock is read."""
    num, start = 0, now(device)
    while now(device) - start < min_seconds:
        num += sum(1 for _ in loader)
    return (now(device) - start) / num


def make_gpu_rows(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Returns medians, and their shares of the step's."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "name": name,
            "seconds_per_batch": median,
            "images_per_second": GPU_BATCH_SIZE / median,
            "share": median / medians[NETWORK],
            "rounds": seconds[name],
        }
        for name, median in medians.items()
    ]


# Report.


def markdown(report: dict[str, Any]) -> str:
    """Formats the rows as a table, the result against the target, and what was measured."""
    given = report["arguments"]
    is_cpu = "ratio" in report["rows"][0]
    first = next(row for row in report["rows"] if row["name"] == RESIDENT)
    images = f"{report['num_images']:,} {'real' if given['images'] else 'synthetic'} images"
    what = (
        f"{images}, batches of {report['batch_size']}; median of {plural(given['rounds'], 'round')}, in each of which"
    )
    return "\n\n".join(
        [
            cpu_table(report["rows"]) if is_cpu else gpu_table(report["rows"]),
            cpu_result(first, report["target"]) if is_cpu else gpu_result(first, report["target"]),
            paragraph(f"{what} all have their turn."),
        ]
    )


def cpu_table(rows: list[dict[str, Any]]) -> str:
    """Formats images per second, and their ratio to the baseline's."""
    return table(
        ["loader", "workers", "images/s", "lowest to highest", "ratio"],
        [
            [r["name"], str(r["workers"]), f"{r['images_per_second']:,.0f}", span(r["rounds"]), f"{r['ratio']:.1f}"]
            for r in rows
        ],
    )


def cpu_result(row: dict[str, Any], goal: float) -> str:
    """Formats the ratio of the resident loader."""
    note = target_note(row["ratio"] >= goal, f"{goal:g}")
    return paragraph(f"{row['name']}: {row['ratio']:.1f} times the images/s of the better row of {BASELINE} ({note})")


def gpu_table(rows: list[dict[str, Any]]) -> str:
    """Formats milliseconds a batch, and their share of the step's."""
    cells = [[r["name"], f"{r['images_per_second']:,.0f}", f"{r['seconds_per_batch'] * 1e3:.3f}"] for r in rows]
    shares = [[*line, percent(row["share"])] for line, row in zip(cells, rows, strict=True)]
    return table(["", "images/s", "ms a batch", "share of a step"], shares)


def gpu_result(row: dict[str, Any], goal: float) -> str:
    """Formats the share of the resident loader."""
    step = f"a training step of {NETWORK} ({PRECISION}, channels_last)"
    note = target_note(row["share"] <= goal, percent(goal, 0))
    return paragraph(f"{row['name']}: {percent(row['share'])} of {step} ({note})")
