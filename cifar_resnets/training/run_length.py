"""The length of a run in optimizer steps."""

import math

import lightning.pytorch as pl

from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError


def run_length(trainer: pl.Trainer) -> tuple[int, int]:
    """Returns the optimizer steps of the whole run and of an epoch.

    They are counted from the data: `estimated_stepping_batches` sets up the loaders too early to resume in mid-epoch.

    Raises:
        ConfigurationError: when the run has no end.
    """
    steps = _num_train_batches(trainer) / trainer.accumulate_grad_batches
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(steps):
        ends.append(trainer.max_epochs * math.ceil(steps))
    if not ends:
        raise ConfigurationError("trainer: give max_epochs or max_steps, the schedule must know the run's length")
    total = max(1, min(ends))
    return total, max(1, math.ceil(steps)) if math.isfinite(steps) else total


def batch_weight(trainer: pl.Trainer, batch_idx: int) -> float:
    """Returns the factor of a batch's loss with which each accumulated gradient is the mean over its batches.

    Lightning divides the loss by `accumulate_grad_batches`, also in the last, smaller group of an epoch.
    """
    size, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if size == 1 or not math.isfinite(batches):
        return 1.0
    rest = int(batches) % size
    return size / rest if batch_idx >= batches - rest else 1.0


def _num_train_batches(trainer: pl.Trainer) -> float:
    """Returns the number of batches per epoch; infinity for loaders of unknown length."""
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ImageDataModule):
        batches, limit = data.num_train_batches, trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    return trainer.num_training_batches
