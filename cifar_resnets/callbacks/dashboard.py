"""TensorBoard's charts of several curves, the network's graph, the best accuracy, and the speed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.figures.network_graph import network_graph

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BEST = "val/acc_best"
CLASSES = 10  # in a chart: only symbols distinguish lines of one run

# images, seconds of the epoch, seconds of training
NOTHING: tuple[int, float, float] = (0, 0.0, 0.0)

Layout = dict[str, dict[str, list[Any]]]

logger = logging.getLogger(__name__)


class Dashboard(pl.Callback):
    """Arranges the charts of a fit in TensorBoard, and logs best accuracy, time and throughput.

    Custom scalars hold loss, accuracy, schedule, speed and the accuracy of each class, a chart each; the graph tab
    shows the network. To all loggers go `val/acc_best`, the highest `val/acc` of the run so far, by which the hparams
    tab compares runs; `time/epoch_seconds`, of a whole epoch with its validation; and `time/images_per_second`,
    training images over all ranks in a second of training, on rank 0's clock.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self._measured = NOTHING
        self._wants_graph = False
        self._epoch, self._training = Stopwatch(), Stopwatch()
        self._num_images = 0

    # The best accuracy is the run's, also after it was resumed.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Resets what belongs to another run."""
        self._measured = NOTHING
        if stage == "fit" and trainer.global_step == 0:
            self.best = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the best accuracy, and the images and seconds of the epoch so far."""
        seconds = (self._epoch.elapsed, self._training.elapsed)
        return {"best": self.best, "num_images": self._num_images, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best accuracy, and the images and seconds of an epoch that was interrupted."""
        self.best = state_dict["best"]
        self._measured = state_dict["num_images"], *state_dict["seconds"]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the best accuracy, before the module logs that of this validation."""
        assert isinstance(pl_module, ImageClassifier)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            accuracy = pl_module.val_metrics.compute().accuracy
            self.best = accuracy if self.best is None else max(self.best, accuracy)
            pl_module.log(BEST, self.best)

    # Layout and graph are written once a fit: a resumed one may have a folder of its own.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the layout of the custom scalars."""
        assert isinstance(pl_module, ImageClassifier)
        self._wants_graph = True
        for writer in _writers(trainer):
            writer.add_custom_scalars(scalars_layout(pl_module.class_names))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Writes the network's graph at the first images, whose size it needs; counts images and time from here on."""
        if self._wants_graph:
            self._pause(pl_module)
            self._wants_graph = False
            self._show_graph(trainer, pl_module, batch[0].shape[1:])
        self._training.resume()
        self._num_images += len(batch[0]) * trainer.world_size

    def _show_graph(self, trainer: pl.Trainer, module: pl.LightningModule, size: Sequence[int]) -> None:
        assert isinstance(module, ImageClassifier)
        if not (writers := _writers(trainer)):
            return
        from cifar_resnets.figures.network_graph import graph_def, graph_event  # TensorBoard: `--help` needs none of it

        with isolate_rng():  # which puts nothing back after an exception
            try:
                graph = graph_def(network_graph(module.network, size))
            except Exception as error:  # a picture must not end a run
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("graph tab: %s cannot be shown: %s", module.hparams["network"], reason)
                return
        for writer in writers:  # as SummaryWriter.add_graph does
            writer._get_file_writer().add_event(graph_event(graph))  # type: ignore[no-untyped-call]

    # Time and throughput.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clocks for a run that is resumed within an epoch, where `on_train_epoch_start` is not called."""
        self._num_images, epoch, training = self._measured
        self._measured = NOTHING
        self._epoch.restart(epoch)
        self._training.restart(training)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clocks."""
        self._num_images = 0
        for watch in (self._epoch, self._training):
            watch.restart()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock of the training until the next batch."""
        self._pause(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs time and throughput."""
        self._pause(pl_module)
        self._epoch.pause()
        # a run that is resumed between two epochs ends the first of them once more, without a batch
        if self._num_images and _has_loggers(trainer):
            pl_module.log("time/epoch_seconds", self._epoch.seconds)
            pl_module.log("time/images_per_second", self._num_images / max(self._training.seconds, 1e-9))

    def _pause(self, module: pl.LightningModule) -> None:
        if self._training.is_running and module.device.type != "cpu":
            torch.accelerator.synchronize(module.device)  # an accelerator is behind; a validation would wait for it too
        self._training.pause()


class Stopwatch:
    """Adds up the seconds between `resume` and `pause`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def is_running(self) -> bool:
        """Returns whether the watch is running."""
        return self._since is not None

    @property
    def elapsed(self) -> float:
        """Returns the seconds so far, also while the watch is running."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def restart(self, seconds: float = 0.0) -> None:
        """Starts from zero, or from seconds of an earlier process."""
        self.seconds, self._since = seconds, time.monotonic()

    def resume(self) -> None:
        """Continues, if it is not running already."""
        if self._since is None:
            self._since = time.monotonic()

    def pause(self) -> None:
        """Stops, if it is running."""
        self.seconds, self._since = self.elapsed, None


def scalars_layout(class_names: Sequence[str]) -> Layout:
    """Returns the charts of the custom scalars by section and title, for `SummaryWriter.add_custom_scalars`."""
    training = {
        "loss": ("train/loss", "val/loss"),
        "accuracy": ("train/acc", "val/acc", "test/acc"),
        "balanced accuracy": ("val/acc_balanced", "test/acc_balanced"),
        "macro F1": ("val/f1_macro", "test/f1_macro"),
        "learning rate": ("lr",),
        "momentum": ("momentum",),
        "images per second": ("time/images_per_second",),
        "seconds per epoch": ("time/epoch_seconds",),
    }
    parts = [class_names[start : start + CLASSES] for start in range(0, len(class_names), CLASSES)]
    titles = ["all classes"] if len(parts) == 1 else [f"{part[0]} to {part[-1]}" for part in parts]
    classes = {t: [f"val_class_acc/{name}" for name in part] for t, part in zip(titles, parts, strict=True)}
    both = {name: (f"train_class_acc/{name}", f"val_class_acc/{name}") for name in class_names}
    return {
        "training": _charts(training),
        "validation accuracy of each class": _charts(classes),
        "training and validation accuracy, class by class": _charts(both),
    }


def _charts(tags: dict[str, Any]) -> dict[str, list[Any]]:
    # TensorBoard takes a tag for a regular expression, and what only begins with it as a match
    return {title: ["Multiline", [f"^{re.escape(tag)}$" for tag in names]] for title, names in tags.items()}


def _has_loggers(trainer: pl.Trainer) -> bool:
    return bool(trainer.loggers) and not trainer.fast_dev_run  # type: ignore[attr-defined]  # of Lightning


def _writers(trainer: pl.Trainer) -> list[SummaryWriter]:
    """Returns TensorBoard's writers on rank 0, none on the others."""
    if not (trainer.is_global_zero and _has_loggers(trainer)):
        return []
    return [each.experiment for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
