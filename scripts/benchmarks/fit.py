"""Fits within this process, so that their steps and callbacks can be timed; and images of noise to train on."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.shared import NUM_CLASSES, add_accelerator, now, positive
from cifar_resnets.callbacks.dashboard import Stopwatch
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli.train import CLI, run
from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.distributed.signals import SIGNALS_OF_PROCESS
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO
from cifar_resnets.runs.log_files import MetricsFile
from cifar_resnets.training.schedules import OneCycle

NUM_VAL = 100
WARM_UP = 5  # steps before the clock starts, compilation among them
BEFORE_TRAINING = ("on_fit_start", "on_train_start")  # hooks that belong to no epoch


# Options.


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every part that trains one network."""
    parser.add_argument("--network", default="cifar_resnet20", help="a name of timm's registry (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=128, help="images a step (default: %(default)s)")
    add_accelerator(parser)


# Data.


class Noise(ImageDataModule):
    """Random images, as many as an epoch of `num_batches` needs.

    Args:
        num_batches: training batches an epoch.
        batch_size: images a batch.
        num_val: validation images.
        image_size: height and width of an image, in pixels.
        seed: of the order and the augmentation of the training images.
    """

    def __init__(
        self, num_batches: int, batch_size: int, num_val: int = NUM_VAL, image_size: int = 32, seed: int = 0
    ) -> None:
        self.num_batches = num_batches
        self.num_val = num_val
        self.image_size = image_size
        self.num_images = num_batches * batch_size + num_val
        super().__init__(batch_size=batch_size, val_fraction=num_val / self.num_images, seed=seed)

    def source_classes(self) -> Sequence[str]:
        """Returns ten names."""
        return [str(label) for label in range(NUM_CLASSES)]

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Draws the images."""
        shape = (self.num_images, self.image_size, self.image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return images, np.arange(self.num_images, dtype=np.int64) % NUM_CLASSES


# Clocks.


class Clock(pl.Callback):
    """Times the steps of an epoch after the warm-up, and notes whether the optimizer is a fused one."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_fused = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the kind of the optimizer."""
        self.is_fused = bool(trainer.optimizers[0].param_groups[0].get("fused"))

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


class Epochs(pl.Callback):
    """Times all epochs of a fit, with the hooks of the callbacks before this one."""

    def __init__(self) -> None:
        self._started = self.seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started = now(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the clock."""
        self.seconds = now(pl_module.device) - self._started


def timed(function: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    """Wraps a function so that a watch runs while it does."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if watch.is_running:  # within another hook of the same callback
            return function(*args, **kwargs)
        watch.resume()
        try:
            return function(*args, **kwargs)
        finally:
            watch.pause()

    return run


def time_hooks(*callbacks: pl.Callback) -> dict[str, Stopwatch]:
    """Times all hooks of callbacks from the first epoch on; returns a watch for each class."""
    watches = {type(each).__name__: Stopwatch() for each in callbacks}
    names = [name for name in dir(pl.Callback) if name.startswith("on_") and name not in BEFORE_TRAINING]
    for each in callbacks:
        for name in names:
            setattr(each, name, timed(getattr(each, name), watches[type(each).__name__]))
    return watches


# Fits.


def fit(args: Sequence[str], before: Callable[[CLI], None]) -> None:
    """Runs `cifar-resnets fit` with all that it has by default, but for the test at its end and a progress bar.

    Args:
        args: its command line.
        before: called when everything is built and nothing has started.

    Raises:
        UserError: for a mistake of the user, such as more than one process.
    """

    class Observed(CLI):
        """The command line, which calls `before` before the fit, and runs no test after it."""

        def before_fit(self) -> None:
            super().before_fit()
            if self.trainer.world_size > 1:
                raise ConfigurationError("trainer.devices: the clock is that of one process, give 1")
            before(self)

        def after_fit(self) -> None:
            pass

    with SIGNALS_OF_PROCESS.installed():
        run(["fit", *args, "--trainer.enable_progress_bar", "false"], Observed)


def quiet_fit(
    args: argparse.Namespace, folder: Path, data: Noise, *callbacks: pl.Callback, max_epochs: int = 1
) -> None:
    """Trains with the loggers of `cifar-resnets fit`, and no other callbacks than those given.

    Args:
        args: see `add_fit_arguments`.
        folder: of the logs.
        data: to train on.
        callbacks: in their order.
        max_epochs: epochs.
    """
    trainer = pl.Trainer(
        accelerator=args.accelerator,
        devices=1,
        max_epochs=max_epochs,
        logger=[TensorBoardLogger(folder, name="", version=""), MetricsFile(folder)],
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what callbacks print is not the report's
        trainer.fit(ImageClassifier(data.class_names, args.network, schedule=OneCycle()), datamodule=data)
