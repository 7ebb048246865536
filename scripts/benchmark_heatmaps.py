"""What heatmaps cost: our Grad-CAM against that of pytorch-grad-cam, on the same networks, layer and images.

Both compute the maps of two classes of each image, in turns within one process, in several rounds. Run it on an idle
machine:

    python scripts/benchmark_heatmaps.py
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from benchmarks.shared import machine, now, positive
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cifar_resnets.cam.gradcam import choose_layer, heatmaps
from cifar_resnets.models.registry import create_network

NUM_CLASSES = 10
TARGET = 3.0  # times as many images a second
LARGEST_DIFFERENCE = 1e-4  # else they would not compute the same


def batch(num: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images (num, 3, 32, 32), and two classes of each (num, 2)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, 32, 32, generator=generator)
    return images.to(device), torch.randint(NUM_CLASSES, (num, 2), generator=generator)


def by_library(network: nn.Module, images: Tensor, classes: Tensor, layer: str) -> Tensor:
    """The library's heatmaps: a forward and a backward pass for each column of classes."""
    cam = GradCAM(network, [network.get_submodule(layer)])
    targets = [[ClassifierOutputTarget(label) for label in column] for column in classes.T.tolist()]
    return torch.stack([torch.from_numpy(cam(images, column)) for column in targets], dim=1)


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Images a second of each, the median over rounds."""
    device = torch.device(args.device)
    network = create_network(name, NUM_CLASSES).to(device).eval()
    images, classes = batch(args.images, device)
    layer = choose_layer(network, images)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: heatmaps(network, images, classes, layers=[layer]),
        "library": lambda: by_library(network, images, classes, layer),
    }
    maps = {way: compute() for way, compute in ways.items()}  # warms up, too
    difference = float((maps["ours"] - maps["library"]).abs().max())
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"{name}: the maps differ by {difference:.1e}")
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, compute in ways.items():
            start = now(device)
            compute()
            rates[way].append(args.images / (now(device) - start))
    return {way: statistics.median(values) for way, values in rates.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--images", type=positive, default=16, help="in a batch, with two classes each")
    parser.add_argument("--rounds", type=positive, default=9, help="of each, after one that does not count")
    parser.add_argument(
        "--networks", nargs="+", default=["cifar_resnet18", "cifar_resnet20"], help="names of timm's registry"
    )
    parser.add_argument("--device", default="cpu", help="as PyTorch names it: cpu, cuda")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.networks:
        rates = measure(name, args)
        ratio = rates["ours"] / rates["library"]
        print(f"{name}: ours {rates['ours']:.0f} images/s, pytorch-grad-cam {rates['library']:.0f} images/s")
        print(f"ratio {ratio:.2f} (target {TARGET:g}: {'reached' if ratio >= TARGET else 'missed'})")
    print("\n".join(machine(torch.device(args.device)).split("; ")))


if __name__ == "__main__":
    main()
