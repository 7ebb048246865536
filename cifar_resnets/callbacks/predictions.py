"""Writes predictions as CSV files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter

from cifar_resnets.callbacks.collectors import in_data_order
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.support.atomic_file import replacing


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.csv`: a row for each image, in the order of the data, with the probability of each class."""

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
            write_csv(self.path, pl_module.class_names, rows)


def write_csv(
    path: Path,
    class_names: Sequence[str],
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[int] | None = None,
) -> None:
    """Writes the probabilities (n, num_classes) of images with their most probable and, if given, true classes (n,)."""
    known = [()] * len(probabilities) if labels is None else [(class_names[label],) for label in labels]
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.writer(text)
        heading = ["predicted", *(f"p({name})" for name in class_names)]
        writer.writerow(["index", *([] if labels is None else ["label"]), *heading])
        for index, (true, row) in enumerate(zip(known, probabilities, strict=True)):
            best = max(range(len(row)), key=row.__getitem__)
            writer.writerow([index, *true, class_names[best], *(f"{p:.6f}" for p in row)])
        text.detach()  # flushes it, and leaves the file open
