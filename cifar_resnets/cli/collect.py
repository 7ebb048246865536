"""`cifar-resnets collect`: a table with one row for the runs that differ only in their seed; imports no torch.

Runs belong to one group if they have the same name and the same configuration, except for the seed and the keys that
`comparable_settings` leaves out; of several runs with one seed, the newest counts.
"""

import argparse
import errno
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifar_resnets.cli.parser import CommandParser, local
from cifar_resnets.errors import DataError
from cifar_resnets.results.run_folder import natural_order
from cifar_resnets.results.seed_groups import Group, group_runs
from cifar_resnets.results.trained_runs import TrainedRun, find_runs
from cifar_resnets.support.text import csv_text, markdown_table, no_formula, printable

EXAMPLES = """
  cifar-resnets collect
  cifar-resnets collect logs/resnet20 logs/resnet56 --sort test
  cifar-resnets collect logs --format csv > results.csv
"""
DESCRIPTION = """\
Collect the runs below folders. Those that differ only in their seed are a row:
mean, sample standard deviation, 95 % interval of the mean (Student), smallest
and largest test accuracy, and the mean of the best validation accuracies."""
FORMATS = ("table", "csv", "markdown", "json")
WIDE = 120  # columns of a terminal from which name, network and settings have columns of their own
MISSING = "-"
FIGURES = ("test_mean", "test_std", "test_low", "test_high", "test_min", "test_max", "val_mean")
COLUMNS = ("name", "network", "settings", "seeds", "seeds_without_result", *FIGURES)
# sort keys: the best group comes first, a group without the figure last
SORTS: dict[str, Callable[[Group], Any]] = {
    "name": lambda group: 0,
    "test": lambda group: -group.test.mean if group.test else math.inf,
    "val": lambda group: math.inf if group.val_mean is None else -group.val_mean,
    "std": lambda group: math.inf if group.test is None or group.test.std is None else group.test.std,
    "seeds": lambda group: -len(group.runs),
}


def run(args: list[str]) -> None:
    """Runs the subcommand; raises UserError for a mistake of the user."""
    options = _parser().parse_args(args[1:])
    runs = collect(options.folders)
    groups = sorted(group_runs(runs), key=lambda group: (SORTS[options.sort](group), *_name_order(group)))
    lines = _lines(runs, groups)
    if options.format == "table":
        width = Console().width if sys.stdout.isatty() else WIDE  # a file or a pipe has no width
        _write(_table(groups, width) + "".join(f"{line}\n" for line in lines))
    elif options.format == "json":
        print(_json(runs, groups))
    else:
        rows = [_row(group) for group in groups]
        csv = options.format == "csv"
        _write(csv_text(rows, COLUMNS) if csv else markdown_table(rows, COLUMNS, left=("name", "network", "settings")))
        _write("".join(f"{line}\n" for line in lines), sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("collect", DESCRIPTION, EXAMPLES)
    where = "folder with runs at any depth, logs if not given; links out of it are not followed"
    add = parser.add_argument
    add("folders", nargs="*", type=local, metavar="DIR", default=[Path("logs")], help=where)
    add("--format", choices=FORMATS, default="table", help="%(choices)s; table if not given")
    add("--sort", choices=SORTS, default="name", help="%(choices)s; name if not given")
    return parser


def collect(folders: Sequence[Path]) -> list[TrainedRun]:
    """Reads the runs below some folders; raises DataError when there is no such folder, or no run."""
    for folder in folders:
        if not os.path.isdir(folder):  # pathlib raises OSError for a name that is too long
            raise DataError(f"collect: there is no folder {folder}, give one that runs were written into, such as logs")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise DataError(f"collect: {folder} cannot be read: {os.strerror(errno.EACCES)}")
    runs = find_runs(folders)
    if not runs:
        where = " or ".join(map(str, folders))
        raise DataError(f"collect: there is no run below {where}, that is no folder version_N of `cifar-resnets fit`")
    return runs


def _name_order(group: Group) -> tuple[Any, ...]:
    def order(value: str) -> tuple[float, str]:
        try:
            return float(value), ""
        except ValueError:
            return math.inf, value

    return natural_order(group.name), [(key, *order(value)) for key, value in group.settings.items()]


def _lines(runs: Sequence[TrainedRun], groups: Sequence[Group]) -> list[str]:
    """Returns the lines below the table: runs without a result, and notes."""
    without = [f"{run.folder}: {run.problem}" for run in runs if run.problem]
    return [
        *([f"without a result: {len(without)} of {len(runs)} folders"] if without else []),
        *(f"  {printable(line)}" for line in without),
        *(f"note: {printable(note)}" for group in groups for note in group.notes),
    ]


def _settings(group: Group, names: Mapping[str, str] | None = None) -> list[str]:
    return [printable(f"{names[key] if names else key} {value}") for key, value in group.settings.items()]


def _figures(group: Group) -> list[float | None]:
    """Returns the figures in the order of FIGURES, as parts of 1."""
    test = group.test
    if test is None:
        return [None] * len(FIGURES)
    return [test.mean, test.std, *(test.interval or (None, None)), test.lowest, test.highest, group.val_mean]


def _row(group: Group) -> dict[str, str]:
    texts = [*map(no_formula, (printable(group.name), printable(group.network), "; ".join(_settings(group))))]
    figures = ["" if figure is None else f"{figure:.6f}" for figure in _figures(group)]
    return dict(zip(COLUMNS, [*texts, str(len(group.runs)), str(group.num_missing), *figures], strict=True))


def _json(runs: Sequence[TrainedRun], groups: Sequence[Group]) -> str:
    document = {
        "groups": [_group(group) for group in groups],
        "without_result": [{"folder": str(run.folder), "reason": run.problem} for run in runs if run.problem],
        "notes": [note for group in groups for note in group.notes],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _group(group: Group) -> dict[str, Any]:
    heads = {"name": group.name, "network": group.network, "settings": group.settings}
    counts = {"seeds": len(group.runs), "seeds_without_result": group.num_missing}
    runs = [
        {"folder": str(run.folder), "seed": run.setup and run.setup.seed, "test": run.accuracy, "val": run.val_accuracy}
        for run in group.runs
    ]
    return {**heads, **counts, **dict(zip(FIGURES, _figures(group), strict=True)), "runs": runs}


# The table for a terminal.


def _table(groups: Sequence[Group], width: int) -> str:
    if not groups:
        return ""
    title = "Test accuracy in % over seeds, 95 % interval of its mean, mean of the best validation accuracies"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("name", "network", "settings") if width >= WIDE else ("run",):
        table.add_column(heading, overflow="fold")
    for heading in ("seeds", "mean", "std", "95 % interval", "min", "max", "val."):
        table.add_column(heading, justify="right", no_wrap=True)
    names = short_keys({key for group in groups for key in group.settings})
    for group in groups:
        heads, settings = [printable(group.name), printable(group.network)], _settings(group, names)
        heads = [*heads, "\n".join(settings)] if width >= WIDE else ["\n  ".join([*heads, *settings])]
        table.add_row(*(Text(cell) for cell in [*heads, *_cells(group)]))
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Returns for each dotted key as many of its last parts as distinguish it from all others."""
    endings = {key: [key.split(".", skip)[-1] for skip in range(key.count("."), -1, -1)] for key in keys}
    taken = Counter(ending for each in endings.values() for ending in each)
    return {key: next((ending for ending in each if taken[ending] == 1), key) for key, each in endings.items()}


def _cells(group: Group) -> list[str]:
    done, all_seeds = len(group.runs), len(group.runs) + group.num_missing
    mean, std, low, high, lowest, highest, val = [
        MISSING if figure is None else f"{100 * figure:.2f}" for figure in _figures(group)
    ]
    interval = MISSING if low == MISSING else f"{low} - {high}"
    return [str(done) if done == all_seeds else f"{done} of {all_seeds}", mean, std, interval, lowest, highest, val]


def _write(text: str, stream: Any = None) -> None:
    """Writes text, and escapes the characters that the encoding of the stream lacks."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
