"""Lightning's callbacks that would do something else here than their users think."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)

from cifar_resnets.callbacks.best_checkpoint import FIGURE, best_of
from cifar_resnets.cli.console import expect_evaluation
from cifar_resnets.errors import ConfigurationError

# callbacks that cannot be used, and why
REFUSED: dict[type, str] = {
    LearningRateFinder: "the schedule would not follow the rate that it finds, give LRFinder",
    BatchSizeFinder: "config.yaml and the schedule would keep the batch size that was given, give data.batch_size",
    GradientAccumulationScheduler: "schedules count on epochs of equal length, give trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "it cannot be resumed exactly, give WeightAveraging or EMAWeightAveraging",
    ModelPruning: "it cannot be resumed exactly, and fails with weights in the format channels_last",
    SpikeDetection: "it fails when a checkpoint is loaded, give on_nonfinite skip",
    BackboneFinetuning: "no network here has a `backbone`, which it would train later than the rest",
}


def check_callbacks(found: Iterable[tuple[str, type, Mapping[str, Any]]]) -> None:
    """Raises ConfigurationError for a callback that cannot be used, or contradicts what it monitors.

    Args:
        found: each callback's key, class and arguments.
    """
    for key, cls, given in found:
        for refused, why in REFUSED.items():
            if issubclass(cls, refused):
                raise ConfigurationError(f"{key}: {refused.__name__} is not supported: {why}")
        if issubclass(cls, (EarlyStopping, ModelCheckpoint)):
            best_of(f"{key}.mode of {cls.__name__}", given.get("monitor"), given.get("mode"))
        if issubclass(cls, ModelCheckpoint):
            check_saving(key, given)


def check_best(given: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for a key of the section `checkpoint` that contradicts another one."""
    check_saving("checkpoint", given, replaces_slash=True)
    if given.get("save_last"):
        raise ConfigurationError(f"checkpoint.save_last: {given['save_last']} is not allowed, `last_checkpoint` has it")


def check_saving(key: str, given: Mapping[str, Any], replaces_slash: bool = False) -> None:
    """Checks arguments of a ModelCheckpoint with which it would save elsewhere, or other weights, than one thinks.

    Args:
        key: of the callback on the command line.
        given: its arguments.
        replaces_slash: whether it replaces the `/` in the name of a figure.

    Raises:
        ConfigurationError: when the file name makes folders, or the figure is not that of the weights.
    """
    monitor, name = given.get("monitor"), str(given.get("filename") or "")
    if "/" in re.sub(r"\{[^{}]*\}", "", name):
        raise ConfigurationError(f"{key}.filename: {name} is not allowed, give a name without /, and dirpath")
    with_slash = [figure for figure in re.findall(FIGURE, name) if "/" in figure]
    if with_slash and given.get("auto_insert_metric_name") and not replaces_slash:
        remedy = f"give auto_insert_metric_name false: {with_slash[0]} in a name would make a folder"
        raise ConfigurationError(f"{key}.filename: {name} is not allowed, {remedy}")
    for every in ("every_n_train_steps", "train_time_interval"):
        if given.get(every) and monitor is not None:
            why = f"{monitor} is of an epoch or a validation, not of the weights of each step"
            raise ConfigurationError(f"{key}.{every}: {why}; give trainer.val_check_interval instead, or monitor null")


def leave_training(trainer: pl.Trainer) -> None:
    """Takes the callbacks that average weights out of a Trainer whose fit has ended, before it tests a checkpoint.

    A checkpoint holds the averaged weights, and beside them those of the training, which Lightning's callback puts in
    their place whenever it loads one after a fit, also for a test.
    """
    expect_evaluation()
    kept = [each for each in trainer.callbacks if not isinstance(each, WeightAveraging)]  # type: ignore[attr-defined]  # of Lightning
    trainer.callbacks = kept  # type: ignore[attr-defined]  # of Lightning
