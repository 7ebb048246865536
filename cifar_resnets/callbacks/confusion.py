"""Figures and numbers of an evaluation: confused classes, accuracies, calibration, precision and recall."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from cifar_resnets.callbacks.collectors import OutputCollector, Outputs, image_names
from cifar_resnets.callbacks.predictions import write_csv
from cifar_resnets.callbacks.publish import garbage_collected, has_pictures, is_due, output_dir, publish
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import require
from cifar_resnets.evaluation import calibration as numbers
from cifar_resnets.evaluation.metrics import wilson_interval
from cifar_resnets.figures.calibration import plot_precision_recall, plot_reliability
from cifar_resnets.figures.confusion import plot_class_accuracy, plot_confused_pairs, plot_confusion
from cifar_resnets.figures.lettering import shown_name
from cifar_resnets.support.atomic_file import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class EvaluationWriter(pl.Callback):
    """Writes what `test` or `validate` predicted: `test_predictions.csv` and `test_calibration.json`, or `val_...`.

    Every run has it, also one that draws nothing: reports and McNemar's test need the predictions.
    """

    run_dir: Path | None = None

    def __init__(self) -> None:
        self._collector = OutputCollector()
        self._step = 0  # of the validation that was collected

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Drops the outputs that an interrupted run left."""
        self._collector.reset()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops the outputs of a validation that was not shown."""
        self._collector.reset()
        self._step = trainer.global_step

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the logits that the module returns, outside the sanity check."""
        is_trial = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]  # of Lightning
        if self._follows(trainer) and not is_trial:
            self._collector.update(outputs, batch[1])

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes, and draws where a figure is due."""
        if self._collector and self._is_due(trainer):
            self._report(trainer, pl_module)

    on_test_end = on_validation_end

    def _follows(self, trainer: pl.Trainer) -> bool:
        """Returns whether the outputs of an evaluation are collected."""
        return trainer.state.fn != "fit"

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return True

    def _draw(self, trainer: pl.Trainer, evaluated: Evaluated, folder: Path | None, stage: str) -> None:
        """Draws nothing."""

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Gathers the outputs of all ranks, which all call it; the first one draws and writes."""
        folder, outputs = output_dir(trainer, self.run_dir), self._collector.pop(trainer)
        if not trainer.is_global_zero or (folder is None and not has_pictures(trainer)):
            return
        assert isinstance(module, ImageClassifier)
        stage = "test" if trainer.testing else "val"
        num_lost = int((~outputs.probabilities.isfinite()).any(dim=1).sum())
        if num_lost:
            text = "%s: %d of %d %s images have logits that are not finite, nothing is drawn"
            logger.warning(text, type(self).__name__, num_lost, len(outputs.labels), stage)
            return
        evaluated = Evaluated(outputs, module.class_names)
        self._draw(trainer, evaluated, folder, stage)
        if folder is not None and trainer.state.fn != "fit":
            loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
            evaluated.write(folder, stage, image_names(loaders))


@dataclass(eq=False)
class Confusion(EvaluationWriter):
    """Draws the confusion matrix, accuracies, the pairs confused most, calibration and precision-recall curves.

    The figures are `val_confusion/...` and `test_confusion/...` in TensorBoard, and PNG files beside the logs. After
    `test` and `validate` the numbers are there, too, see `EvaluationWriter`. The weights of a run are the same without
    it; nothing is drawn in a `fast_dev_run`.

    Args:
        every_n_epochs: draw after the validation of every so many epochs; ten times a run if not given. Always after
            the last validation of a fit, and after `validate` and `test`.

    Raises:
        ConfigurationError: for a number below 1.
    """

    every_n_epochs: int | None = None
    run_dir: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__init__()
        n = self.every_n_epochs
        require("Confusion", n is None or n >= 1, "every_n_epochs", n, "1 or more")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the last validation of a run that ended earlier than planned."""
        if self._collector:
            self._report(trainer, pl_module)

    def _follows(self, trainer: pl.Trainer) -> bool:
        return True

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return is_due(trainer, self.every_n_epochs)

    def _draw(self, trainer: pl.Trainer, evaluated: Evaluated, folder: Path | None, stage: str) -> None:
        for name, draw in evaluated.figures().items():
            with garbage_collected():
                publish(trainer, folder, f"{stage}_confusion/{name}", draw(), self._step)


class Evaluated:
    """The numbers of an evaluation, from labels and finite probabilities."""

    def __init__(self, outputs: Outputs, class_names: Sequence[str]) -> None:
        self.outputs, self.class_names = outputs, class_names
        labels, probabilities = outputs.labels.numpy(), outputs.probabilities.numpy()
        self.confusion = numbers.confusion_counts(labels, probabilities.argmax(axis=1), len(class_names))
        self.reliability = numbers.reliability(labels, probabilities)
        self.pairs = numbers.most_confused(self.confusion)
        self.curves = numbers.precision_recall(labels, probabilities)

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """Returns a function that draws each figure, by the end of its tag, so that one at a time is in memory."""
        names = [shown_name(name, number) for number, name in enumerate(self.class_names)]
        return {
            "matrix": functools.partial(plot_confusion, self.confusion, names),
            "class_accuracy": functools.partial(plot_class_accuracy, *class_accuracy(self.confusion), names),
            "pairs": functools.partial(plot_confused_pairs, self.pairs, names),
            "calibration": functools.partial(plot_reliability, self.reliability),
            "precision_recall": functools.partial(plot_precision_recall, self.curves, names),
        }

    def write(self, folder: Path, stage: str, names: Sequence[str] | None = None) -> None:
        """Writes `STAGE_predictions.csv`, with the names of the images if given, and `STAGE_calibration.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        probabilities, labels = self.outputs.probabilities.tolist(), self.outputs.labels.tolist()
        write_csv(folder / f"{stage}_predictions.csv", self.class_names, probabilities, labels, names)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        with replacing(folder / f"{stage}_calibration.json") as file:
            file.write(f"{text}\n".encode())

    def to_dict(self) -> dict[str, Any]:
        """Returns calibration, average precision and pairs for JSON; None where there is no number."""
        names, bins = self.class_names, self.reliability
        columns = (bins.edges[:-1], bins.edges[1:], bins.counts, bins.confidence, bins.accuracy)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        keys = ("low", "high", "images", "confidence", "accuracy")
        areas = [None if curve is None else curve.average_precision for curve in self.curves]
        return {
            "ece": bins.ece,
            "bins": [dict(zip(keys, map(_known, row), strict=True)) for row in rows],
            "classes": [{"name": n, "average_precision": a} for n, a in zip(names, areas, strict=True)],
            "pairs": [
                {"true": names[p.true], "predicted": names[p.predicted], "images": p.count, "percent": p.percent}
                for p in self.pairs
            ],
        }


def class_accuracy(confusion: numbers.Counts) -> tuple[numbers.Floats, numbers.Floats]:
    """Returns the accuracy (num_classes,) and 95 % interval (num_classes, 2) of each class; NaN without images."""
    right, images = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
    both = zip(right, images, strict=True)
    intervals = [wilson_interval(correct, total) if total else (math.nan, math.nan) for correct, total in both]
    return numbers.row_percent(confusion).diagonal() / 100, np.array(intervals)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
