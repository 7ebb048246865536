"""Keeps the checkpoints whose monitored figure is best."""

import re
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import ConfigurationError

Mode = Literal["min", "max"]
OURS = r"(train|val|test)(/loss|/acc|/acc_\w+|/f1_macro|_class_acc/.*)"  # figures
FIGURE = r"\{([^{}:]*)"  # in a file name, up to the format


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but what it calls the best is so, and its files do not replace each other.

    With `save_top_k` 1 there is one file, `best.ckpt`. With more, the names of the files tell epoch (from 0, as
    Lightning counts), step and figure: `best-epoch=4-step=25-val_acc=0.1608.ckpt`.

    Args:
        filename: name of the files, without folder; `{epoch}`, `{step}` and figures such as `{val/acc:.4f}` are
            replaced.
        monitor: the figure by which checkpoints are compared; the newest checkpoint is kept if null.
        mode: whether `min` or `max` is best; that of the figure if not given: losses are to fall, accuracies to rise.
        save_top_k: number of checkpoints to keep; all if -1.
        auto_insert_metric_name: write the name of each `{...}` before its value, with `_` in place of `/`.
        enable_version_counter: write `best-v1.ckpt` where there is a `best.ckpt`, even one of an earlier process.
        kwargs: see `lightning.pytorch.callbacks.ModelCheckpoint`.

    Raises:
        ConfigurationError: when the mode contradicts the figure.
    """

    def __init__(
        self,
        filename: str = "best",
        monitor: str | None = "val/acc",
        mode: Mode | None = None,
        save_top_k: int = 1,
        auto_insert_metric_name: bool = True,
        enable_version_counter: bool = False,
        **kwargs: Any,
    ) -> None:
        if save_top_k not in (0, 1) and not re.search(FIGURE, filename):
            filename += "-{epoch}-{step}" + (f"-{{{monitor}:.4f}}" if monitor else "")
            auto_insert_metric_name = True
        if auto_insert_metric_name:  # here, because Lightning would write the `/` of a figure, too
            filename = re.sub(FIGURE, lambda figure: f"{figure[1].replace('/', '_')}={figure[0]}", filename)
        super().__init__(
            filename=filename,
            monitor=monitor,
            mode=best_of("checkpoint.mode", monitor, mode) or "max",
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            enable_version_counter=enable_version_counter,
            **kwargs,
        )

    @property
    def state_key(self) -> str:
        """Returns the key of the state in a checkpoint, which is that of version 0.1.0."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Returns whether the figure is among the best; not if the weights have changed since the validation."""
        module = trainer.lightning_module
        has_changed = isinstance(module, ImageClassifier) and module.val_step != trainer.global_step
        if str(self.monitor).startswith("val") and has_changed:
            return False
        return super().check_monitor_top_k(trainer, current)

    def format_checkpoint_name(
        self, metrics: dict[str, Tensor], filename: str | None = None, ver: int | None = None, prefix: str | None = None
    ) -> str:
        """Returns the path of a new checkpoint, which is not that of one that is kept."""
        path = super().format_checkpoint_name(metrics, filename, ver, prefix)
        if path in self.best_k_models:  # two validations in an epoch, for example, and `{epoch}` alone in the name
            return self.format_checkpoint_name(metrics, filename, (ver or 0) + 1, prefix)
        return path


def best_of(key: str, monitor: str | None, mode: Mode | None) -> Mode | None:
    """Returns whether the smallest or the largest value of a figure is best.

    Args:
        key: of the mode on the command line, for the error.
        monitor: name of the figure.
        mode: as the user gave it, or None.

    Raises:
        ConfigurationError: when it contradicts one of our figures, or cannot be guessed from the name of another one.
    """
    if monitor is None:
        return mode
    guess: Mode | None = "max" if "acc" in monitor or "f1" in monitor else "min" if "loss" in monitor else None
    if mode is None and guess is None:
        raise ConfigurationError(f"{key} is missing: give min or max, whichever {monitor} is to be")
    if mode is not None and mode != guess and re.fullmatch(OURS, monitor):
        raise ConfigurationError(f"{key}: {mode} is not allowed, {monitor} is best at its {guess}imum: give {guess}")
    return mode or guess
