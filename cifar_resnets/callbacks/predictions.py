"""Writes predictions as CSV files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter

from cifar_resnets.callbacks.collectors import image_names, in_data_order
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.support.atomic_file import replacing


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.csv`: a row for each image, in the order of the data, see `write_csv`."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = run_dir / "predictions.csv"

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gathers the probabilities of all ranks, a tensor (n, num_classes) for each batch, and writes them."""
        batches = in_data_order(trainer, [batch.cpu() for batch in predictions])
        if trainer.is_global_zero:
            assert isinstance(pl_module, ImageClassifier)
            rows = [row.tolist() for batch in batches for row in batch]
            names = image_names(trainer.predict_dataloaders)
            write_csv(self.path, pl_module.class_names, rows, names=names)


def write_csv(
    path: Path,
    class_names: Sequence[str],
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Writes the predictions for the first images of a set, a row for each.

    Args:
        path: of the file.
        class_names: in the order of the probabilities.
        probabilities: (n, num_classes).
        labels: true classes (n,), for a column `label`; no such column if None.
        names: of n images or more, for a column `path`; no such column if None.
    """
    known: dict[str, Sequence[str]] = {} if names is None else {"path": names[: len(probabilities)]}
    known |= {} if labels is None else {"label": [class_names[label] for label in labels]}
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(["index", *known, "predicted", *(f"p({name})" for name in class_names)])
        for index, (row, *cells) in enumerate(zip(probabilities, *known.values(), strict=True)):
            best = max(range(len(row)), key=row.__getitem__)
            writer.writerow([index, *cells, class_names[best], *(f"{p:.6f}" for p in row)])
        text.detach()  # flushes it, and leaves the file open
