"""What a run has logged so far: how much of it a checkpoint knows, and how to go back to that."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from cifar_resnets.support.atomic_file import replacing

EVENTS = "events.out.tfevents.*"
METRICS = "metrics.csv"


class MetricsFile(CSVLogger):
    """The CSVLogger of Lightning, but what it has written stays: when a run is resumed, and when it is interrupted."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file."""
        if not isinstance(self._experiment, _Appender):
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _Appender(self.log_dir)
        return self._experiment


class _Appender(ExperimentWriter):
    """Appends to the file that is there.

    Both methods are private of Lightning; tests/runs/test_log_files.py notices when they are no longer called.
    """

    def _check_log_dir_exists(self) -> None:  # Lightning's deletes the file
        self.metrics_keys = _header(Path(self.metrics_file_path))

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:  # Lightning's empties the file first
        _write_rows(Path(self.metrics_file_path), fieldnames, _rows(Path(self.metrics_file_path)))


def logged_so_far(trainer: pl.Trainer, run_dir: Path) -> dict[str, Any]:
    """How much has been logged: bytes of each file of events, rows of the table.

    Args:
        trainer: whose loggers write into the run's folder; only rank 0 may call this.
        run_dir: folder of the run.
    """
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
    return {"events": event_files(run_dir), "rows": len(_rows(run_dir / METRICS))}


def event_files(run_dir: Path) -> dict[str, int]:
    """The files of events in a run's folder, and their bytes."""
    return {path.name: path.stat().st_size for path in sorted(run_dir.glob(EVENTS))}


def go_back(run_dir: Path, written: Mapping[str, int], logged: Mapping[str, Any]) -> None:
    """Takes out of the logs what came after a checkpoint: it will come again.

    Args:
        run_dir: folder of the run.
        written: files of events that there were before this process, see `event_files`.
        logged: see `logged_so_far`; of the checkpoint.
    """
    for name in written:
        if name not in logged["events"]:
            (run_dir / name).unlink(missing_ok=True)
        elif (run_dir / name).stat().st_size > logged["events"][name]:
            os.truncate(run_dir / name, logged["events"][name])
    copy_rows(run_dir, run_dir, logged)


def copy_logs(source: Path, target: Path, logged: Mapping[str, Any]) -> None:
    """Copies what had been logged when a checkpoint was written, for a run that goes on from it in another folder.

    Args:
        source: folder of the checkpoint's run; what is not there is left out.
        target: folder of the other run.
        logged: see `logged_so_far`; of the checkpoint.
    """
    for name, size in logged["events"].items():
        if (source / name).is_file():
            with (source / name).open("rb") as events, replacing(target / name) as copy:
                copy.write(events.read(size))
    copy_rows(source, target, logged)


def copy_rows(source: Path, target: Path, logged: Mapping[str, Any]) -> None:
    """Copies the first rows of the table."""
    rows = _rows(source / METRICS)[: logged["rows"]]
    if rows:
        _write_rows(target / METRICS, list(rows[0]), rows)
    else:
        (target / METRICS).unlink(missing_ok=True)


def _header(path: Path) -> list[str]:
    return list(_rows(path)[0]) if _rows(path) else []


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table; without its last if that was cut off in writing."""
    if not path.is_file():
        return []
    text = path.read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with replacing(path) as file:
        lines = csv.DictWriter(_Text(file), fieldnames=columns)
        lines.writeheader()
        lines.writerows(rows)


class _Text:
    """What the csv module writes to a file of bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        written: int = self._file.write(text.encode())
        return written
