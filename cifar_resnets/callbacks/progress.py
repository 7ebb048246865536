"""Progress on the console: a header, a line for each epoch, and a bar on a terminal."""

import math
import time
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.support.text import printable
from cifar_resnets.training.run_length import run_length


class EpochLines(pl.Callback):
    """Prints network and data, and a line at the end of each epoch with the remaining time."""

    def __init__(self) -> None:
        self._first_epoch = self._num_lines = 0
        self._started = self._epoch_started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the header."""
        self._first_epoch, self._num_lines = trainer.current_epoch, 0
        # a run that is resumed within an epoch has no start of it
        self._started = self._epoch_started = time.monotonic()
        assert isinstance(pl_module, ImageClassifier)
        print_line(trainer, f"{pl_module.hparams['network']}: {pl_module.freezing.summary(trainer.current_epoch)}")
        if pl_module.line_of_weights is not None:
            print_line(trainer, printable(pl_module.line_of_weights))
        if isinstance(data := getattr(trainer, "datamodule", None), ImageDataModule):
            print_line(trainer, f"{type(data).__name__}: {data.summary()}")
        if pl_module.class_weights is not None:
            print_line(trainer, weights_line(pl_module.class_weights.tolist(), pl_module.class_names))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line of the epoch before: its figures are complete only after all `on_train_epoch_end` hooks."""
        if trainer.current_epoch > self._first_epoch:
            self._print_line(trainer)
        assert isinstance(pl_module, ImageClassifier)
        if trainer.current_epoch == pl_module.freezing.unfreeze_epoch:
            print_line(trainer, f"unfrozen: all {pl_module.freezing.summary(trainer.current_epoch)} are trained")
        self._epoch_started = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the line of the last epoch."""
        if trainer.current_epoch > self._first_epoch:
            self._print_line(trainer)

    def _print_line(self, trainer: pl.Trainer) -> None:
        # a run that is resumed between two epochs ends the first of them once more, without a batch
        if "train/loss" not in trainer.callback_metrics:
            return
        self._num_lines += 1
        now = time.monotonic()
        epochs, done = num_epochs(trainer), trainer.current_epoch
        left = (now - self._started) / self._num_lines * (epochs - done)
        print_line(trainer, epoch_line(done, epochs, trainer.callback_metrics, now - self._epoch_started, left))


class EpochBar(RichProgressBar):
    """Lightning's progress bar on one line, with epochs counted from 1 and without metrics."""

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from 0, to -2 where the run's length is given in steps; a private method:
        # tests/callbacks/test_progress.py notices when it is no longer called
        return f"Epoch {current_epoch + 1}/{num_epochs(self.trainer)}"

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Returns none: `EpochLines` prints them."""
        return {}


def num_epochs(trainer: pl.Trainer) -> int:
    """Returns the number of epochs of the whole run; the last one may be incomplete."""
    total, per_epoch = run_length(trainer)
    return math.ceil(total / per_epoch)


def epoch_line(done: int, epochs: int, metrics: Mapping[str, Tensor], seconds: float, left: float) -> str:
    """Formats the line of an epoch, at most 80 characters."""

    def figure(name: str, scale: float, form: str) -> str:
        return format(metrics[name].item() * scale, form) if name in metrics else "-"

    parts = [
        f"epoch {done:>{len(str(epochs))}}/{epochs}",
        f"loss {figure('train/loss', 1, '.3f')}",
        f"train {figure('train/acc', 100, '5.2f')} %",
        f"val {figure('val/acc', 100, '5.2f')} %",
        f"{seconds:.1f} s" if seconds < 100 else duration(seconds),
    ]
    return "  ".join([*parts, f"ETA {duration(left)}"] if done < epochs else parts)


def weights_line(weights: Sequence[float], class_names: Sequence[str]) -> str:
    """Formats the smallest and the largest weight of a class."""
    (low, one), (high, other) = (choose(zip(weights, class_names, strict=True)) for choose in (min, max))
    return f"class weights: {low:.3g} ({printable(one)}) to {high:.3g} ({printable(other)})"


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_line(trainer: pl.Trainer, line: str) -> None:
    """Prints on rank 0, above the progress bar where there is one."""
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.print(line)
    elif trainer.is_global_zero:
        print(line, flush=True)
