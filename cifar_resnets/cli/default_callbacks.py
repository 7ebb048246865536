"""What every run shows of its network's mistakes, unless it is turned off: pictures, figures, a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

import cifar_resnets.data.cifar
import cifar_resnets.data.digits
import cifar_resnets.data.image_folder  # noqa: F401
from cifar_resnets.callbacks.confusion import Confusion
from cifar_resnets.callbacks.lr_finder import LRFinder  # noqa: F401  a recipe can name it
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.callbacks.receptive_field import ReceptiveField  # noqa: F401  a recipe can name it
from cifar_resnets.callbacks.report_writer import ReportWriter
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.log_files import MetricsFile

# For the parser, which would take an instance's own attributes for its arguments.
ALL: dict[str, Any] = {
    "misclassified": {"class_path": f"{Misclassified.__module__}.{Misclassified.__name__}"},
    "confusion": {"class_path": f"{Confusion.__module__}.{Confusion.__name__}"},
    "report": True,
}


def known_keys() -> list[str]:
    """The keys of the command line below `explain`, in their short form."""
    parts = {"misclassified": Misclassified, "confusion": Confusion}
    own = [f"explain.{each.name}" for each in fields(Explanations)]
    return own + [f"explain.{name}.{each.name}" for name, part in parts.items() for each in fields(part) if each.init]


@dataclass
class Explanations:
    """What a run shows of its network's mistakes, in TensorBoard and beside the logs.

    Args:
        misclassified: galleries of misclassified images with heatmaps; none if null.
        confusion: figures of which classes are mixed up, and how far probabilities can be trusted; none if null.
        report: write `report.html` after each test.
    """

    misclassified: Misclassified | None = None
    confusion: Confusion | None = None
    report: bool = True

    def callbacks(self, run_dir: Path, named: Sequence[pl.Callback]) -> Iterator[pl.Callback]:
        """The callbacks that a run gets, in their order.

        Args:
            run_dir: folder of the run.
            named: those of the recipe; one of them takes the place of the same one here.

        Raises:
            ConfigurationError: when one of them is named twice.
        """
        for own in (self.misclassified, self.confusion):
            if own is None:
                continue
            same = [each for each in named if isinstance(each, type(own))]
            if len(same) > 1:
                raise ConfigurationError(f"trainer.callbacks: {type(own).__name__} is there twice")
            (same or [own])[0].run_dir = run_dir
            yield from () if same else (own,)
        if self.report:
            yield ReportWriter(run_dir)


def _loggers(run_dir: Path) -> list[Any]:
    return [
        TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False),
        MetricsFile(run_dir, name="", version=""),
    ]
