"""How fast heatmaps are made: our Grad-CAM against pytorch-grad-cam's, on the same networks, layer and images.

Both compute the maps of two classes of each image, in turns within one process.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
from cifar_resnets.cam.feature_maps import choose_layer
from cifar_resnets.cam.gradcam import heatmaps
from cifar_resnets.models.registry import create_network

NETWORKS = ["cifar_resnet18", "cifar_resnet20"]
WAYS = {"ours": "ours", "library": "pytorch-grad-cam"}
TARGET = 3.0  # times as many images a second
LARGEST_DIFFERENCE = 1e-4  # above it, the two would not compute the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add = parser.add_argument
    add("--networks", nargs="+", metavar="NAME", default=NETWORKS, help=f"default: {' '.join(NETWORKS)}")
    add("--images", type=positive, default=16, help="in a batch, with two classes each (default: %(default)s)")
    add("--rounds", type=positive, default=9, help="of each, after one that does not count (default: %(default)s)")
    add_accelerator(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the images per second of both, network by network."""
    device = device_of(args.accelerator)
    for name in args.networks:
        require_known(name)
    return {
        "device": str(device),
        "rows": [make_row(name, args.images, args.rounds, device) for name in args.networks],
        "target": TARGET,
    }


def make_row(name: str, num_images: int, num_rounds: int, device: torch.device) -> dict[str, Any]:
    """Times both in turns on one network.

    Raises:
        RuntimeError: when their maps differ.
    """
    network = create_network(name, NUM_CLASSES).to(device).eval()
    images, classes = batch(num_images, device)
    layer = choose_layer(network, images)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: heatmaps(network, images, classes, layers=[layer]),
        "library": functools.partial(by_library, network, images, classes, layer),
    }
    maps = {way: compute() for way, compute in ways.items()}  # and warms up
    if (difference := float((maps["ours"] - maps["library"]).abs().max())) > LARGEST_DIFFERENCE:
        raise RuntimeError(f"{name}: the maps differ by {difference:.1e}")
    rounds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(num_rounds):
        for way, compute in ways.items():
            start = now(device)
            compute()
            rounds[way].append(num_images / (now(device) - start))
    rates = {way: statistics.median(values) for way, values in rounds.items()}
    return {"network": name, "images_per_second": rates, "rounds": rounds, "ratio": rates["ours"] / rates["library"]}


def batch(num: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draws images (num, 3, 32, 32), and two classes of each (num, 2)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, 32, 32, generator=generator)
    return images.to(device), torch.randint(NUM_CLASSES, (num, 2), generator=generator)


def by_library(network: nn.Module, images: Tensor, classes: Tensor, layer: str) -> Tensor:
    """Computes the library's heatmaps: a forward and a backward pass for each column of classes."""
    from pytorch_grad_cam import GradCAM  # takes seconds, which the other parts need not wait for
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(network, [network.get_submodule(layer)])
    targets = [[ClassifierOutputTarget(label) for label in column] for column in classes.T.tolist()]
    return torch.stack([torch.from_numpy(cam(images, column)) for column in targets], dim=1)


def markdown(report: dict[str, Any]) -> str:
    """Formats two rows for each network, and whether the target was reached."""
    rows, notes = [], []
    for row in report["rows"]:
        for way, name in WAYS.items():
            rate, rounds = row["images_per_second"][way], row["rounds"][way]
            rows.append([f"{row['network']}, {name}", f"{rate:,.1f}", span(rounds)])
        note = target_note(row["ratio"] >= report["target"], f"{report['target']:g}")
        notes.append(f"{row['network']}: ratio {row['ratio']:.2f} ({note})")
    given = report["arguments"]
    what = (
        f"Maps of {plural(given['images'], 'image')}, two classes each; medians of {plural(given['rounds'], 'round')}"
    )
    return "\n\n".join([table(["", "images/s", "lowest to highest"], rows), "\n".join(notes), paragraph(f"{what}.")])
