"""Logs of a run: metrics.csv, the event files of TensorBoard, and how to cut them back to a checkpoint."""

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from cifar_resnets.results.csv_files import read_rows
from cifar_resnets.runs.checkpoint_schema import EVENTS
from cifar_resnets.support.atomic_file import replacing

METRICS = "metrics.csv"


class MetricsFile(Logger):
    """Appends metrics to `metrics.csv`, a row for each call, with a column for each metric in alphabetical order.

    Unlike the CSVLogger of Lightning, it keeps the file of a run that is resumed, and writes a new header atomically.

    Args:
        run_dir: folder of the file.
    """

    def __init__(self, run_dir: str | Path) -> None:
        super().__init__()
        self._path = Path(run_dir, METRICS)
        self._rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Returns an empty name: the folder is that of the run."""
        return ""

    @property
    def version(self) -> str:
        """Returns an empty version: the folder is that of the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Returns the folder of the file."""
        return str(self._path.parent)

    log_dir = root_dir = save_dir

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row, which the next `save` writes."""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._rows.append({**values, "step": len(self._rows) if step is None else step})

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml holds the hyperparameters."""

    def save(self) -> None:
        """Writes the rows that were added."""
        if not self._rows:
            return
        known = _header(self._path)
        columns = sorted({*known, *(name for row in self._rows for name in row)})
        if columns != known or self._path.is_symlink():  # a run's folder may come from a stranger
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write_rows(self._path, columns, _rows(self._path))
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerows(self._rows)
        self._rows = []


def logged_so_far(trainer: pl.Trainer, run_dir: Path) -> dict[str, Any]:
    """Returns how much has been logged: bytes of each event file, rows of metrics.csv.

    Args:
        trainer: whose loggers write into the run's folder; on rank 0.
        run_dir: folder of the run.
    """
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
    return {"events": event_files(run_dir), "rows": len(_rows(run_dir / METRICS))}


def event_files(run_dir: Path) -> dict[str, int]:
    """Returns the names of the event files in a run's folder, and their bytes; a link is none of them."""
    return {path.name: path.stat().st_size for path in sorted(run_dir.glob(EVENTS)) if _is_own_file(path)}


def go_back(run_dir: Path, written: Mapping[str, int], logged: Mapping[str, Any]) -> None:
    """Removes from the logs everything that is later than a checkpoint: the resumed run will log it again.

    Args:
        run_dir: folder of the run.
        written: event files from before this process, see `event_files`.
        logged: how much had been logged at the checkpoint, see `logged_so_far`.
    """
    for name in written:
        if name not in logged["events"]:
            (run_dir / name).unlink(missing_ok=True)
        elif (run_dir / name).stat().st_size > logged["events"][name]:
            os.truncate(run_dir / name, logged["events"][name])
    copy_rows(run_dir, run_dir, logged)


def copy_logs(source: Path, target: Path, logged: Mapping[str, Any]) -> None:
    """Copies what had been logged at a checkpoint, for a run that goes on from it in another folder.

    Args:
        source: folder of the checkpoint's run; files that are missing there, or links, are left out.
        target: folder of the other run.
        logged: how much had been logged at the checkpoint, see `logged_so_far`.
    """
    for name, size in logged["events"].items():
        if _is_own_file(source / name):
            with (source / name).open("rb") as events, replacing(target / name) as copy:
                copy.write(events.read(size))
    copy_rows(source, target, logged)


def copy_rows(source: Path, target: Path, logged: Mapping[str, Any]) -> None:
    """Copies the first rows of metrics.csv; removes the target's file if there are none."""
    rows = _rows(source / METRICS)[: logged["rows"]]
    if rows:
        _write_rows(target / METRICS, list(rows[0]), rows)
    else:
        (target / METRICS).unlink(missing_ok=True)


def _is_own_file(path: Path) -> bool:
    """Returns whether a path is a file that is no link: a run's folder may come from a stranger."""
    return path.is_file() and not path.is_symlink()


def _header(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a table, without the last one if it is incomplete."""
    return read_rows(path, []) if _header(path) else []


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())
