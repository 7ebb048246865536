"""Reads the folder of a run, as far as its files exist and are undamaged."""

import csv
import errno
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cifar_resnets.errors import ConfigurationError, DataError, one_line
from cifar_resnets.results.csv_files import Curve, Predictions, read_history, read_predictions, read_rows, read_search
from cifar_resnets.results.json_files import (
    Evaluation,
    Mistakes,
    Record,
    read_config,
    read_config_text,
    read_evaluation,
    read_gallery,
    read_mistakes,
    read_record,
)

T = TypeVar("T")
Stage = Literal["test", "val"]
KNOWN = (
    *("config.yaml", "run.json", "metrics.csv", "lr_finder.csv"),
    *("test.json", "test_predictions.csv", "val.json", "val_predictions.csv"),
)
LARGEST = 2**28  # bytes of a file: predictions of a million images for ten classes
DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError),
    *(ArithmeticError, RuntimeError, MemoryError),  # of infinite counts, of ciphers and depths, of absurd sizes
    *(csv.Error, yaml.YAMLError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Run:
    """Everything that a report shows of a run; `notes` say what could not be read, and why.

    Args:
        label: short name, unique in the report.
        stage: evaluated images, the test images if they were evaluated.
    """

    folder: Path
    label: str
    stage: Stage = "test"
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    record: Record = Record()
    history: dict[str, Curve] = field(default_factory=dict)
    search: list[tuple[Curve, Curve]] = field(default_factory=list)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    predictions: Predictions | None = None
    mistakes: Mistakes | None = None
    gallery: Mistakes | None = None
    layers: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def evaluation(self) -> Evaluation | None:
        """Returns the evaluation of the stage."""
        return self.evaluations.get(self.stage)

    def setting(self, key: str) -> Any:
        """Returns a value of the configuration by its dotted key; None if there is no such key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_run(folder: Path, label: str) -> Run:
    """Reads a run's folder.

    Raises:
        ConfigurationError: if there is no such folder.
        DataError: if it is not a run's, or nothing in it can be read.
    """
    _check_run(folder)
    files = Files(folder)
    there = {path.name for path in folder.iterdir()}
    stage: Stage = "val" if "val.json" in there and not {"test.json", "test_predictions.csv"} & there else "test"
    evaluations = {name: files.read(f"{name}.json", read_evaluation) for name in ("test", "val")}
    files.notes += [
        f"{name}.json is about {found.total.images:,} images, not all, by trainer.limit_{name}_batches"
        for name, found in evaluations.items()
        if found and not found.complete
    ]
    run = Run(
        folder,
        label,
        stage,
        config_text=files.read("config.yaml", read_config_text) or "",
        config=files.read("config.yaml", read_config) or {},
        record=files.read("run.json", read_record) or Record(),
        history=files.read("metrics.csv", lambda path: read_history(path, files.notes)) or {},
        search=files.read("lr_finder.csv", lambda path: read_search(path, files.notes)) or [],
        evaluations={name: evaluation for name, evaluation in evaluations.items() if evaluation},
        predictions=files.read(f"{stage}_predictions.csv", lambda path: read_predictions(path, files.notes)),
        mistakes=files.read("mistakes.npz", read_mistakes) if stage == "test" else None,
        gallery=files.read("gallery.npz", read_gallery) if stage == "test" else None,
        layers=files.read("layers.csv", lambda path: read_rows(path, files.notes)) or [],
        notes=files.notes,
    )
    if not any((run.config, run.record != Record(), run.history, run.search, run.evaluations, run.predictions)):
        raise DataError(f"report: nothing in {folder} can be read: {'; '.join(dict.fromkeys(files.notes))}")
    return run


def is_run(folder: Path) -> bool:
    """Returns whether a folder contains a file that only a run writes."""
    return any(os.path.isfile(folder / name) for name in KNOWN)


def _check_run(folder: Path) -> None:
    if not os.path.isdir(folder):  # pathlib raises OSError for a name that is too long
        raise ConfigurationError(f"report: there is no folder {folder}, give a run's, such as logs/NAME/version_0")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"report: {folder} cannot be read: {os.strerror(errno.EACCES)}")
    if not is_run(folder):
        runs = [path.name for path in folder.glob("version_*") if is_run(path)]
        newest = folder / max(runs, key=natural_order, default="")
        hint = f", did you mean {newest}?" if runs else f" (it has none of {', '.join(KNOWN[:5])})"
        raise DataError(f"report: {folder} is not the folder of a run{hint}")


def natural_order(text: str) -> list[Any]:
    """Returns a sort key that places version_10 after version_9."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text))]


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Returns a short name for each folder: as many of its last parts as make it unique.

    Raises:
        ConfigurationError: if a folder is given twice.
    """
    parts = [Path(os.path.realpath(folder)).parts for folder in folders]  # pathlib raises for a loop of links
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1)
        raise ConfigurationError(f"report: {twice} is given twice")
    length = 2 if all(own[-1].startswith("version_") for own in parts) else 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return ["/".join(own[-length:]) for own in parts]


class Files:
    """Reads files of a folder, and collects notes on those that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def read(self, name: str, parse: Callable[[Path], T]) -> T | None:
        """Returns the parsed file; None if there is none, or, with a note, if it is damaged."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            if not path.is_file():
                raise ValueError("it is no file")  # reading a pipe would never end
            if path.stat().st_size > LARGEST:
                raise ValueError(f"it is larger than {LARGEST:,} bytes")
            return parse(path)
        except DAMAGE as error:
            note = f"{name} cannot be read: {_reason(error)}"
            self.notes += [note] if note not in self.notes else []
            return None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (KeyError, TypeError, AttributeError, IndexError, ArithmeticError)):
        return "it does not hold what `cifar-resnets` writes"
    return one_line(error)
