"""`cifar-resnets fit` within this process, so that a clock can be put into it; and images of noise to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.shared import NUM_CLASSES, now
from cifar_resnets.cli.train import CLI, run
from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.distributed.signals import SIGNALS_OF_PROCESS
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.checkpoint_file import AtomicCheckpointIO
from cifar_resnets.runs.log_files import MetricsFile

NUM_VAL = 100
WARM_UP = 5  # steps before the clock starts, compilation among them


class Noise(ImageDataModule):
    """Random images of CIFAR-10's size, as many as an epoch of `num_batches` needs.

    Args:
        num_batches: training batches an epoch.
        batch_size: images a batch.
        num_val: validation images.
        seed: of the order and the augmentation of the training images.
    """

    def __init__(self, num_batches: int, batch_size: int, num_val: int = NUM_VAL, seed: int = 0) -> None:
        self.num_batches = num_batches
        self.num_val = num_val
        self.num_images = num_batches * batch_size + num_val
        super().__init__(batch_size=batch_size, val_fraction=num_val / self.num_images, seed=seed)

    def source_classes(self) -> Sequence[str]:
        """Ten names."""
        return [str(label) for label in range(NUM_CLASSES)]

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Draws the images."""
        images = np.random.default_rng(0).integers(0, 256, (self.num_images, 32, 32, 3), dtype=np.uint8)
        return images, np.arange(self.num_images, dtype=np.int64) % NUM_CLASSES


class Clock(pl.Callback):
    """Times the batches of an epoch after the warm-up; notes whether the optimizer is a fused one."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_fused = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the optimizer."""
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


def fit(args: Sequence[str], before: Callable[[CLI], None]) -> None:
    """Runs `cifar-resnets fit` with all that it has by default, but for the test at its end and a progress bar.

    Args:
        args: its command line.
        before: called when everything is built and nothing has begun.

    Raises:
        UserError: for what the user got wrong, more than one process among it.
    """

    class Observed(CLI):
        """What `fit` is, and somebody who watches."""

        def before_fit(self) -> None:
            super().before_fit()
            if self.trainer.world_size > 1:
                raise ConfigurationError("trainer.devices: the clock is that of one process, give 1")
            before(self)

        def after_fit(self) -> None:
            pass

    with SIGNALS_OF_PROCESS.installed():
        run(["fit", *args, "--trainer.enable_progress_bar", "false"], Observed)


def quiet_trainer(folder: Path, accelerator: str, *callbacks: pl.Callback, max_epochs: int = 1) -> pl.Trainer:
    """A Trainer on one device with the loggers of `cifar-resnets fit`, and no other callbacks than those given."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=max_epochs,
        logger=[TensorBoardLogger(folder, name="", version=""), MetricsFile(folder)],
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
