"""What seeing the mistakes costs: the callbacks that are on by default, against the epochs of the fit they run in.

One fit with the console's, the dashboard's and the explaining callbacks as `cifar-resnets fit` has them; each of their
hooks is timed. A run of ten epochs draws after each of them, a longer one ten times: the first is the worst case. Run
it on an idle machine:

    python scripts/benchmark_explanations.py
"""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from benchmarks.fit import Noise, quiet_trainer
from benchmarks.shared import device_of, machine, positive

from cifar_resnets.callbacks.confusion import Confusion
from cifar_resnets.callbacks.dashboard import Dashboard
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli.default_callbacks import Explanations
from cifar_resnets.training.schedules import OneCycle

TARGET = 0.02
NUM_VAL = 5000


class Epochs(pl.Callback):
    """Notes when each epoch ended, with all that belongs to it."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.marks.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the time."""
        self.marks.append(time.perf_counter())


def timed(callback: pl.Callback, seconds: dict[str, float]) -> pl.Callback:
    """The callback, each of whose hooks adds its seconds to those of its class."""

    def wrap(hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                seconds[type(callback).__name__] += time.perf_counter() - start

        return run

    for name in dir(pl.Callback):
        # what comes before the first step is not an epoch's
        if name.startswith("on_") and name not in ("on_fit_start", "on_train_start"):
            setattr(callback, name, wrap(getattr(callback, name)))
    return callback


def measure(args: argparse.Namespace, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of all epochs, and of the hooks of each callback within them."""
    seconds: dict[str, float] = defaultdict(float)
    explanations = Explanations(Misclassified(), Confusion()).callbacks(folder)
    epochs, own = Epochs(), [timed(each, seconds) for each in (Dashboard(), *explanations)]
    trainer = quiet_trainer(folder, args.accelerator, *own, epochs, max_epochs=args.epochs)
    data = Noise(args.batches, args.batch_size, NUM_VAL)
    trainer.fit(ImageClassifier(data.class_names, args.network, schedule=OneCycle()), datamodule=data)
    return epochs.marks[-1] - epochs.marks[0], seconds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--batch-size", type=positive, default=128, help="images a step")
    parser.add_argument("--batches", type=positive, default=351, help="steps an epoch: CIFAR-10 without validation")
    parser.add_argument("--epochs", type=positive, default=2, help="epochs, after each of which is drawn")
    parser.add_argument("--network", default="cifar_resnet20", help="a name of timm's registry")
    parser.add_argument("--accelerator", default="cpu", help="as the Trainer takes it: cpu, gpu, auto")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # about a benchmark's short epochs and few workers
    with tempfile.TemporaryDirectory() as folder:
        total, seconds = measure(args, Path(folder))
    for name, spent in seconds.items():
        print(f"{name:<16} {spent / args.epochs:8.3f} s an epoch")
    ratio = sum(seconds.values()) / total
    verdict = "reached" if ratio < TARGET else "missed"
    print(f"{ratio:.2%} of the {total / args.epochs:.1f} s of an epoch (target {TARGET:.0%}: {verdict})")
    print("\n".join(machine(device_of(args.accelerator)).split("; ")))


if __name__ == "__main__":
    main()
