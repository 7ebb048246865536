"""What lies in a run's folder, as far as it is there and can be read."""

from __future__ import annotations

import csv
import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cifar_resnets.errors import ConfigurationError, DataError
from cifar_resnets.results.csv_files import Curve, Predictions, read_history, read_predictions, read_rows, read_search
from cifar_resnets.results.json_files import (
    Evaluation,
    Mistakes,
    Record,
    read_config,
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
DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError),
    *(ArithmeticError, RuntimeError, MemoryError),  # of infinite counts, of ciphers and depths, of absurd sizes
    *(csv.Error, yaml.YAMLError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Run:
    """Everything that a report shows of a run.

    Args:
        folder: of the run.
        label: short name that no other run of the report has.
        stage: which images the evaluation is about: the test images if there are figures of them.
        notes: what could not be read, and why.
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
        """The figures of the stage."""
        return self.evaluations.get(self.stage)

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key; None where it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_run(folder: Path, label: str) -> Run:
    """Reads a run's folder.

    Raises:
        ConfigurationError: when there is no such folder.
        DataError: when it is not a run's, or nothing in it can be read.
    """
    check_run(folder)
    files = Files(folder)
    stage: Stage = "val" if files.has_only("val") else "test"
    evaluations = {name: files.read(f"{name}.json", read_evaluation) for name in ("test", "val")}
    config_text = files.read("config.yaml", lambda path: path.read_text(encoding="utf-8")) or ""
    run = Run(
        folder,
        label,
        stage,
        config_text,
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
    """Whether a folder holds a file that only a run writes."""
    return any(os.path.isfile(folder / name) for name in KNOWN)


def check_run(folder: Path) -> None:
    """Refuses what is no folder of a run.

    Raises:
        ConfigurationError: when there is no such folder.
        DataError: when it is another one, or may not be read.
    """
    if not os.path.isdir(folder):  # pathlib raises OSError for a name that is too long
        raise ConfigurationError(f"report: there is no folder {folder}, give a run's, such as logs/NAME/version_0")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"report: {folder} cannot be read: {os.strerror(errno.EACCES)}")
    if not is_run(folder):
        inner = sorted((path for path in folder.glob("version_*") if is_run(path)), key=_in_order)
        hint = f", did you mean {inner[-1]}?" if inner else f" (it has none of {', '.join(KNOWN[:5])})"
        raise DataError(f"report: {folder} is not the folder of a run{hint}")


def _in_order(folder: Path) -> tuple[int, str]:
    return len(folder.name), folder.name  # version_10 comes after version_9


def labels_of(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder: as many of its last parts as tell it from the others.

    Raises:
        ConfigurationError: when a folder is given twice.
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
    """Reads the files of a folder, and notes what cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def has_only(self, stage: str) -> bool:
        """Whether the run is an evaluation of one stage, `val` or `test`, alone."""
        there = {path.name for path in self.folder.iterdir()}
        other = "val" if stage == "test" else "test"
        return f"{stage}.json" in there and not {f"{other}.json", f"{other}_predictions.csv"} & there

    def read(self, name: str, parse: Callable[[Path], T]) -> T | None:
        """What a parser makes of a file; None, with a note, if it is damaged."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            if not path.is_file():
                raise ValueError("it is no file")  # a pipe would never end
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
    return " ".join(str(error).split()) or type(error).__name__
