"""A clock for the training of a fit alone, which is evaluated on the test images after each epoch."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.fit import timed
from benchmarks.shared import now
from cifar_resnets.callbacks.dashboard import Stopwatch
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.data.loaders import TrainLoader


class TrainingClock(pl.Callback):
    """Clocks the training of a fit, and evaluates it on the test images in place of the validation images.

    Args:
        data: of the fit, not yet prepared.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.training, self.evaluation, self.reading = Stopwatch(), Stopwatch(), Stopwatch()
        self.curve: list[dict[str, Any]] = []
        self.num_images = {"train": 0, "test": 0}
        self.first_step: float | None = None
        self.first_batch_at = 0.0
        self.device = torch.device("cpu")
        data.val_dataloader = data.test_dataloader  # type: ignore[method-assign]  # of this one fit
        for name in ("prepare_data", "setup", "train_dataloader", "val_dataloader"):
            setattr(data, name, timed(getattr(data, name), self.reading))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Starts with the first batch."""
        if not self.first_batch_at:
            self.device = pl_module.device
            assert isinstance(trainer.train_dataloader, TrainLoader)
            self.num_images["train"] = trainer.train_dataloader.sampler.num_images
            self.first_batch_at = now(self.device)
            self.training.resume()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Notes the time of the first step, which includes compilation."""
        if self.first_step is None:
            now(self.device)
            self.first_step = self.training.elapsed

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pauses when the device has done the epoch's last step."""
        if not trainer.sanity_checking:
            now(self.device)
            self.training.pause()
            self.evaluation.resume()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the epoch's figures, and resumes."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, ImageClassifier)
        now(self.device)
        self.evaluation.pause()
        figures = pl_module.evaluations["val"]
        self.num_images["test"] = figures.num_images
        self.curve.append(
            {
                "epoch": trainer.current_epoch + 1,
                "training_seconds": self.training.seconds,
                "evaluation_seconds": self.evaluation.seconds,
                "accuracy": figures.accuracy,
                "accuracy_tta": figures.tta_accuracy,
            }
        )
        self.training.resume()
