"""The argument parser of the light subcommands, and a check of `--plot`."""

import argparse
from pathlib import Path
from typing import NoReturn

from cifar_resnets.errors import ConfigurationError, OutputError, local_path

FIGURES = (".png", ".jpg", ".pdf", ".svg")


def positive(text: str) -> int:
    """Returns the number of an argument that counts; argparse reports one that is not 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give 1 or more")
    return int(text)


def local(text: str) -> Path:
    """Returns the path of an argument, with the home folder for a leading `~`; argparse reports an address."""
    if not text:  # of an unset variable; pathlib makes the current folder of it
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return Path(local_path("path", text))
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of a light subcommand; errors are raised as ConfigurationError."""

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
    """Raises UserError if `--plot` is no image file, or in no folder, before anything is computed for it."""
    if path is None:
        return
    if path.suffix.lower() not in FIGURES:
        raise ConfigurationError(f"--plot: {path} is not allowed, end it with one of {', '.join(FIGURES)}")
    if not path.parent.is_dir():
        raise OutputError(f"--plot: there is no folder {path.parent}")
