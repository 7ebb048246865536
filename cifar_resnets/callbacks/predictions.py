"""The predictions of `predict` as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed
from lightning.pytorch.callbacks import BasePredictionWriter

from cifar_resnets.classifier import ImageClassifier


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.csv`: a row an image, in the order of the data, with the probability of each class.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(write_interval="epoch")
        self.run_dir = run_dir

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Called by Lightning with this rank's probabilities, a tensor (n, num_classes) a batch."""
        batches = [batch.cpu() for batch in predictions]
        gathered = [batches]
        if trainer.world_size > 1:
            gathered = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, batches)
        if trainer.is_global_zero:
            assert isinstance(pl_module, ImageClassifier)
            # the ranks take turns: see `EvalLoader.part`
            rows = [row.tolist() for turn in zip(*gathered, strict=True) for batch in turn for row in batch]
            write_csv(self.run_dir / "predictions.csv", pl_module.class_names, rows)


def write_csv(path: Path, class_names: Sequence[str], probabilities: Sequence[Sequence[float]]) -> None:
    """Writes probabilities (n, num_classes) with the most probable class of each image."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "predicted", *(f"p({name})" for name in class_names)])
        for index, row in enumerate(probabilities):
            best = max(range(len(row)), key=row.__getitem__)
            writer.writerow([index, class_names[best], *(f"{p:.6f}" for p in row)])
