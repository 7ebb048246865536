"""The parser of a light subcommand, and checks that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from cifar_resnets.errors import ConfigurationError, OutputError

FIGURES = (".png", ".jpg", ".pdf", ".svg")


class CommandParser(argparse.ArgumentParser):
    """The parser of a light subcommand, whose errors are lines of ours.

    Args:
        command: name of the subcommand.
        description: what it does.
        examples: command lines, one a line.
    """

    def __init__(self, command: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"cifar-resnets {command}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        """Raises ConfigurationError."""
        raise ConfigurationError(f"{self.command}: {message}")


def check_figure_path(path: Path | None) -> None:
    """Refuses a `--plot` that could not be written, before anything is computed for it.

    Raises:
        ConfigurationError: for an ending that is no format of figures.
        OutputError: when there is no such folder.
    """
    if path is None:
        return
    if path.suffix.lower() not in FIGURES:
        raise ConfigurationError(f"--plot: {path} is not allowed, end it with one of {', '.join(FIGURES)}")
    if not path.parent.is_dir():
        raise OutputError(f"--plot: there is no folder {path.parent}")
