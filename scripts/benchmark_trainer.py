"""What Lightning costs: `Trainer.fit` of an `ImageClassifier` against a bare PyTorch loop.

Both train the same network with the same loader, optimizer and schedule on the same synthetic images, in turns within
one process. Timed is what lies between the first and the last batch of a round, so that neither start-up nor validation
counts, but each hook of each step does. Run it on an idle machine:

    python scripts/benchmark_trainer.py
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.base import DEFAULT_AUGMENTATION, ImageDataModule, Images, Labels, Split
from cifar_resnets.data.resident import TrainLoader
from cifar_resnets.models import create_network
from cifar_resnets.runs.batch_norm import AgreeingBuffers
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO
from cifar_resnets.runs.continuation import Continuation
from cifar_resnets.runs.guards import NonfiniteGuard
from cifar_resnets.runs.last_checkpoint import LastCheckpoint
from cifar_resnets.runs.logs import MetricsFile
from cifar_resnets.schedules import OneCycle

NUM_CLASSES = 10
NUM_VAL = 100
WARM_UP = 5  # steps before the clock starts, in each round of either
TARGET = 0.95


class Noise(ImageDataModule):
    """Random images of CIFAR-10's size, as many as an epoch of `num_batches` needs.

    Args:
        num_batches: training batches an epoch.
        batch_size: images a batch.
        num_val: validation images.
    """

    def __init__(self, num_batches: int, batch_size: int, num_val: int = NUM_VAL) -> None:
        self.num_batches = num_batches
        self.num_val = num_val
        self.num_images = num_batches * batch_size + num_val
        super().__init__(batch_size=batch_size, val_fraction=num_val / self.num_images)

    def source_classes(self) -> Sequence[str]:
        """Ten names."""
        return [str(label) for label in range(NUM_CLASSES)]

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Draws the images."""
        images = np.random.default_rng(0).integers(0, 256, (self.num_images, 32, 32, 3), dtype=np.uint8)
        return images, np.arange(self.num_images, dtype=np.int64) % NUM_CLASSES


class Clock(pl.Callback):
    """Times the batches of an epoch after the warm-up."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Starts after the warm-up."""
        if index == WARM_UP:
            self.seconds -= now(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stops with the last batch, before the epoch's end and the validation."""
        if index == trainer.num_training_batches - 1:
            self.seconds += now(pl_module.device)


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_fit(args: argparse.Namespace, folder: Path) -> float:
    """Seconds of `args.steps` steps of `Trainer.fit`, with loggers and checkpoints as `cifar-resnets fit` has them."""
    data, clock = Noise(args.steps + WARM_UP, args.batch_size), Clock()
    best = ModelCheckpoint(folder / "checkpoints", "best", monitor="val/acc", mode="max")
    last = LastCheckpoint(dirpath=str(folder / "checkpoints"))
    own = (AgreeingBuffers(), Continuation(folder), NonfiniteGuard(), best, last)
    quiet_trainer(folder, args.accelerator, *own, clock).fit(
        ImageClassifier(data.class_names, args.network, schedule=OneCycle()), datamodule=data
    )
    return clock.seconds


def quiet_trainer(folder: Path, accelerator: str, *callbacks: pl.Callback, max_epochs: int = 1) -> pl.Trainer:
    """A Trainer on one device with the loggers of `cifar-resnets fit`, and no other callbacks than those given."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=max_epochs,
        logger=[TensorBoardLogger(folder, name="", version=""), MetricsFile(folder, name="", version="")],
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def time_loop(args: argparse.Namespace, device: torch.device) -> float:
    """Seconds of as many steps of a loop that does nothing but train."""
    loader = resident_loader(args, device)
    network = create_network(args.network, NUM_CLASSES).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=args.steps + WARM_UP)
    start = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == WARM_UP:
            start = now(device)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]  # of torch
        optimizer.step()
        scheduler.step()
    return now(device) - start


def resident_loader(args: argparse.Namespace, device: torch.device) -> TrainLoader:
    """The loader that the data module gives to a trainer."""
    images, labels = (torch.from_numpy(values) for values in Noise(args.steps + WARM_UP, args.batch_size).load("train"))
    num = len(images) - NUM_VAL
    return TrainLoader(
        images[:num].to(device),
        labels[:num].to(device),
        batch_size=args.batch_size,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        augmentation=DEFAULT_AUGMENTATION,
        seed=0,
        num_classes=NUM_CLASSES,
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both in turns, so that what else the machine does falls on both; images per second of each round."""
    device = device_of(args.accelerator)
    images = args.steps * args.batch_size
    rates: dict[str, list[float]] = {"fit": [], "loop": []}
    for number in range(args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            fit = images / time_fit(args, Path(folder))
        loop = images / time_loop(args, device)
        if number:  # the first round of each warms up allocator, caches and clock rates
            rates["fit"].append(fit)
            rates["loop"].append(loop)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "images_per_second": medians,
        "rounds": rates,
        "ratio": medians["fit"] / medians["loop"],
        "peak_rss_mib": peak_rss_mib(),
        "machine": machine(device),
        "arguments": {name: value for name, value in vars(args).items() if name != "json"},
    }


def peak_rss_mib() -> float:
    """The most memory that this process has held; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def device_of(accelerator: str) -> torch.device:
    """The device that the Trainer takes."""
    return pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device


def machine(device: torch.device) -> str:
    """Hardware and versions in a line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    versions = f"torch {torch.__version__}, lightning {version('lightning')}, Python {platform.python_version()}"
    return f"{name}, threads: {torch.get_num_threads()}; {versions}"


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(report: dict[str, Any]) -> str:
    """The report in Markdown, 80 columns wide."""
    rows = [("loop", "bare PyTorch loop"), ("fit", "`Trainer.fit`")]
    lines = [f"| {'':<18} | images/s | {'rounds':<43} |", f"|{'-' * 20}|---------:|{'-' * 45}|"]
    for key, name in rows:
        rounds = ", ".join(f"{rate:.0f}" for rate in report["rounds"][key])
        lines.append(f"| {name:<18} | {report['images_per_second'][key]:>8.0f} | {rounds:<43} |")
    verdict = "reached" if report["ratio"] >= TARGET else "missed"
    lines += [
        "",
        f"ratio {report['ratio']:.3f} (target {TARGET}: {verdict}), peak RSS {report['peak_rss_mib']:,.0f} MiB",
    ]
    return "\n".join([*lines, *report["machine"].split("; ")])


def arguments() -> argparse.Namespace:
    """What the user asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--batch-size", type=positive, default=128, help="images a step")
    parser.add_argument("--steps", type=positive, default=60, help="timed steps a round")
    parser.add_argument("--rounds", type=positive, default=3, help="rounds of each, after one that does not count")
    parser.add_argument("--network", default="cifar_resnet20", help="a name of timm's registry")
    parser.add_argument("--accelerator", default="cpu", help="as the Trainer takes it: cpu, gpu, auto")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number from 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give 1 or more")
    return number


def main() -> None:
    """Measures and prints."""
    args = arguments()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # about a benchmark's short epochs and few workers
    torch.set_num_threads(args.threads)
    report = measure(args)
    print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
