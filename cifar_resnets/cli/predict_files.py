"""What `cifar-resnets predict IMAGE...` shows and writes while it classifies files."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cifar_resnets import __version__
from cifar_resnets.cam.gradcam import METHODS
from cifar_resnets.cli.predict import MOST_IN_TABLE, ROOT, SHEET, TABLE
from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.inference.classifier import TrainedClassifier, load
from cifar_resnets.inference.heatmaps import HeatmapWriter
from cifar_resnets.inference.paths import Found
from cifar_resnets.inference.row_files import CsvFile, JsonArray
from cifar_resnets.inference.rows import Row, classify_files
from cifar_resnets.reports.contact_sheet import ContactSheet
from cifar_resnets.runs.run_dir import RECORD, check_writable, claim_run_dir, name_of_run
from cifar_resnets.support.atomic_file import replacing
from cifar_resnets.support.text import printable

RANKS = {0: "predicted", 1: "2nd", 2: "3rd"}  # headings of the table


class Output(Protocol):
    """Takes rows as they come."""

    def add(self, row: Row) -> None:
        """Takes in the next row."""


def predict_files(options: argparse.Namespace, found: Sequence[Found]) -> str:
    """Classifies files, and shows and writes what the options ask for.

    Returns:
        A line about the files that could not be read; empty if there are none.
    """
    try:
        classifiers = _classifiers(options)
    except CheckpointError as error:
        raise CheckpointError(f"--ckpt_path: {error}") from error
    classifiers[0].check_tta(options.tta)
    heatmaps = _heatmaps(options, classifiers[0])
    folder = _folder(options, classifiers[0], len(found))
    top_k, shown = min(options.top_k, len(classifiers[0].class_names)), Shown(len(found))
    sheet = ContactSheet(str(options.ckpt_path))
    with ExitStack() as stack:
        outputs: list[Output] = [shown]
        if folder is not None:
            outputs.append(stack.enter_context(CsvFile(folder / TABLE, top_k, heatmaps is not None)))
        if options.json:
            outputs.append(stack.enter_context(JsonArray(sys.stdout, top_k)))
        advance = stack.enter_context(_progress(len(found)))
        batch_size = options.batch_size or classifiers[0].batch_size
        for row in classify_files(classifiers, found, batch_size, options.tta, options.workers, heatmaps):
            for output in outputs:
                output.add(row)
            if folder is not None:
                _add(sheet, row, top_k)
            advance()
    if folder is not None:
        sheet.write(folder / SHEET)
    if not options.json:
        shown.print(top_k)
    _print_places(options, folder, heatmaps)
    return shown.problems(None if folder is None else folder / TABLE)


def _classifiers(options: argparse.Namespace) -> list[TrainedClassifier]:
    """Loads the network onto each device; on the CPU all share one."""
    there_are = torch.cuda.device_count()
    if options.accelerator == "cpu" or (options.accelerator == "auto" and not there_are):
        return [load(options.ckpt_path, "cpu", options.image_size, options.trust)] * options.devices
    if options.devices > there_are:
        what = f"there {'is' if there_are == 1 else 'are'} {there_are} GPU{'s' if there_are != 1 else ''} here"
        raise ConfigurationError(f"--accelerator gpu --devices {options.devices}: {what}")
    devices = [f"cuda:{index}" for index in range(options.devices)]
    return [load(options.ckpt_path, device, options.image_size, options.trust) for device in devices]


def _heatmaps(options: argparse.Namespace, classifier: TrainedClassifier) -> HeatmapWriter | None:
    if options.heatmaps is None:
        return None
    method = options.method or "gradcam"
    if method not in METHODS:
        raise ConfigurationError(f"--method: {method} is not allowed, give one of {', '.join(METHODS)}")
    if len(classifier.class_names) < 2:
        raise ConfigurationError("--heatmaps: the network has one class, there is no second one to compare with")
    layers = [name for part in (options.layers or "").split(",") if (name := part.strip())]
    writer = HeatmapWriter(options.heatmaps, classifier, method, layers or None)
    check_writable(options.heatmaps, "--heatmaps")
    return writer


def _folder(options: argparse.Namespace, classifier: TrainedClassifier, num_files: int) -> Path | None:
    """Returns the folder of the files, which is made; None if they are not wanted: for one image, and for JSON."""
    if options.output is not None:
        check_writable(options.output, "--output")
        return Path(options.output)
    if num_files == 1 or options.json:
        return None
    network = str(classifier.hyper_parameters["network"]).replace(":", ".")
    folder = claim_run_dir(ROOT, name_of_run(options.ckpt_path, None) or network, "--output")
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record = {"command": sys.argv, "started": started, "cifar_resnets": __version__, "subcommand": "predict"}
    with replacing(folder / RECORD) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    return folder


def _add(sheet: ContactSheet, row: Row, top_k: int) -> None:
    if row.prediction is None or row.pixels is None:
        sheet.add_failure(row.path, row.problem)
    else:
        sheet.add(row.path, row.prediction.top(top_k), row.pixels)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Shows a bar with the remaining time on a terminal."""
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty() or total == 1) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


class Shown:
    """Keeps the few rows that are printed, and counts the files that could not be read."""

    def __init__(self, num_files: int) -> None:
        self.num_files, self.num_failures = num_files, 0
        self._first: Row | None = None
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Takes in a row."""
        if row.problem:
            self.num_failures, self._first = self.num_failures + 1, self._first or row
        if self.num_files <= MOST_IN_TABLE:
            self._rows.append(row)

    def print(self, top_k: int) -> None:
        """Prints one image in a line, and up to twenty on a terminal in a table."""
        if self.num_files == 1 and not self.num_failures:
            print(one_line(self._rows[0], top_k))
        elif 1 < self.num_files <= MOST_IN_TABLE and sys.stdout.isatty():
            Console().print(_table(self._rows, top_k))

    def problems(self, table: Path | None) -> str:
        """Returns a line about the files that could not be read; empty if there are none."""
        if self._first is None:
            return ""
        first = f"{printable(self._first.path)!r}: {printable(self._first.problem)}"
        if self.num_files == 1:
            return f"predict: {first}"
        more = f"; {table} has the reason of each" if table and self.num_failures > 1 else ""
        return (
            f"predict: {self.num_failures:,} of {self.num_files:,} files could not be read, the first is {first}{more}"
        )


def one_line(row: Row, top_k: int) -> str:
    """Returns the answer for one image."""
    assert row.prediction is not None
    classes = (f"{name} {100 * p:.2f} %" for name, p in row.prediction.top(top_k))
    return printable(f"{row.path}: {', '.join(classes)}")


def _table(rows: Sequence[Row], top_k: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("image", overflow="fold")
    for rank in range(top_k):
        table.add_column(RANKS.get(rank, f"{rank + 1}th"), overflow="fold")
        table.add_column("%", justify="right", no_wrap=True)
    for row in rows:
        top = [] if row.prediction is None else row.prediction.top(top_k)
        cells = [cell for name, p in top for cell in (printable(name), f"{100 * p:.2f}")]
        table.add_row(*(Text(cell) for cell in (printable(row.path), *(cells or [printable(row.problem)]))))
    return table


def _print_places(options: argparse.Namespace, folder: Path | None, heatmaps: HeatmapWriter | None) -> None:
    stream = sys.stderr if options.json else sys.stdout
    if folder is not None:
        print(f"predictions: {folder / TABLE}\ncontact sheet: {folder / SHEET}", file=stream)
    if heatmaps is not None:
        print(f"heatmaps: {options.heatmaps} ({heatmaps.note})", file=stream)
