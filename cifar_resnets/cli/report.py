"""`cifar-resnets report`: one HTML file about a run, or about several side by side; imports no torch."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cifar_resnets.cli.parser import CommandParser, local
from cifar_resnets.errors import ConfigurationError, OutputError
from cifar_resnets.reports import FILE_NAME
from cifar_resnets.reports.page import write_report
from cifar_resnets.results.run_folder import is_run

EXAMPLES = """
  cifar-resnets report logs/resnet20/version_0
  cifar-resnets report logs/resnet20/version_0 logs/resnet56/version_0 --output depth.html
"""


def run(args: list[str]) -> None:
    """Runs the subcommand; raises UserError for a mistake of the user."""
    options = _parser().parse_args(args[1:])
    output = options.output or (options.runs[0] if len(options.runs) == 1 else Path()) / FILE_NAME
    _check_output(output, options.runs)
    write_report(options.runs, output)
    print(f"report: {output}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("report", "Write one HTML file about a run, or about several side by side.", EXAMPLES)
    runs = "folder of a run; the first one is the baseline"
    output = f"where to write; RUN_DIR/{FILE_NAME} for one run, {FILE_NAME} here for several if not given"
    parser.add_argument("runs", nargs="+", type=local, metavar="RUN_DIR", help=runs)
    parser.add_argument("--output", type=local, metavar="FILE", help=output)
    return parser


def _check_output(output: Path, runs: Sequence[Path]) -> None:
    """Raises UserError if the report cannot be written, or would replace the report of another run."""
    if os.path.exists(output) and not os.path.isfile(output):  # pathlib raises OSError for a name that is too long
        raise OutputError(f"--output: {output} is no file, give the name of one, such as {FILE_NAME}")
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"--output: {output} is not allowed, end it with .html")
    own = len(runs) == 1 and os.path.realpath(runs[0]) == os.path.realpath(output.parent)
    if output.name == FILE_NAME and is_run(output.parent) and not own:
        raise ConfigurationError(f"--output: {output} is the report of that run alone, give another file")
    if not os.path.isdir(output.parent) and output.parent not in runs:  # a missing run has its own message
        raise OutputError(f"--output: there is no folder {output.parent}")
