"""Writes the report of a run at the end of a test."""

import io
import logging
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import one_line
from cifar_resnets.receptive_field.table import print_summary
from cifar_resnets.receptive_field.theory import summarize
from cifar_resnets.reports import FILE_NAME
from cifar_resnets.support.sandbox import plain_network

logger = logging.getLogger(__name__)


class ReportWriter(pl.Callback):
    """Writes `layers.csv`, the network's receptive fields, and `report.html` at the end of each test.

    It comes after the callbacks whose files the report reads. A report that fails is a warning of one
    line, and the test goes on.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / FILE_NAME

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes both files on rank 0."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            return
        try:
            from cifar_resnets.reports.page import write_report  # imported after the test: it takes long

            for each in trainer.loggers:
                each.save()  # writes buffered rows of metrics.csv
            notes = self._write_layers(trainer, pl_module)
            write_report([self.run_dir], self.path, notes)
        except Exception as error:  # a full disk, or a bug: the results of the test stay
            logger.warning(f"there is no report of this test: {one_line(error)}")

    def _write_layers(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[str]:
        """Writes the table of layers; returns a note for the reader of the report if that fails."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(module, ImageClassifier) or not isinstance(data, ImageDataModule):
            return []
        table = io.StringIO()
        try:
            from cifar_resnets.reports.page import write_atomically

            summary = summarize(plain_network(module.network), (3, *data.image_shape))
            print_summary(summary, "csv", Console(file=table))
            write_atomically(self.run_dir / "layers.csv", table.getvalue().encode())
        except Exception as error:  # a network of the user may raise anything
            return [f"layers.csv was not written: {one_line(error)}"]
        return []
