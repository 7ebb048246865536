"""What a learning-rate range test costs: `LRFinder` before a fit, against as many training steps of that fit.

Both are timed within one `Trainer.fit` on synthetic images, in several rounds: the search with all that belongs to it
(building loader and optimizer, putting everything back, figure and CSV), and the steps that follow. Run it on an idle
machine:

    python scripts/benchmark_lr_finder.py
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
from benchmarks.fit import WARM_UP, Clock, Noise, quiet_trainer
from benchmarks.shared import device_of, machine, now, positive

from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.training.schedules import OneCycle

FACTOR, CONSTANT = 1.15, 2.0  # the target: at most so many times the steps' time, plus so many seconds


class TimedFinder(LRFinder):
    """A finder that notes the seconds of its search and of all that follows from it."""

    seconds = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Searches."""
        start = now(pl_module.device)
        super().on_fit_start(trainer, pl_module)
        self.seconds = now(pl_module.device) - start


def measure(args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a range test, and of as many training steps."""
    # a test that diverges early would cost less
    finder, clock = TimedFinder(num_steps=args.steps, max_lr=0.1), Clock()
    data = Noise(args.steps + WARM_UP, args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(Path(folder), args.accelerator, finder, clock)
        trainer.fit(ImageClassifier(data.class_names, args.network, schedule=OneCycle()), datamodule=data)
    return finder.seconds, clock.seconds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--batch-size", type=positive, default=128, help="images a step")
    parser.add_argument("--steps", type=positive, default=100, help="steps of the test, and of the training")
    parser.add_argument("--rounds", type=positive, default=3, help="after one that does not count")
    parser.add_argument("--network", default="cifar_resnet20", help="a name of timm's registry")
    parser.add_argument("--accelerator", default="cpu", help="as the Trainer takes it: cpu, gpu, auto")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # about a benchmark's short epochs and few workers
    rounds = [measure(args) for _ in range(args.rounds + 1)][1:]
    test, steps = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    print(f"range test of {args.steps} steps: {test:.2f} s; {args.steps} training steps: {steps:.2f} s")
    verdict = "reached" if test <= FACTOR * steps + CONSTANT else "missed"
    print(f"ratio {test / steps:.3f} (target {FACTOR} and {CONSTANT:g} s: {verdict})")
    print("\n".join(machine(device_of(args.accelerator)).split("; ")))


if __name__ == "__main__":
    main()
