"""What is wrong with a command line, in one line: the parser often reports twenty lines of types."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
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


def explain(message: str, keys: Collection[str], choices: Mapping[str, Sequence[str]]) -> str:
    """One line: the key, what is wrong with its value, what is allowed.

    Args:
        message: of an error of jsonargparse.
        keys: all keys there are, to say which was meant.
        choices: names of the classes that a key takes.
    """
    path = ".".join(_innermost(re.findall(r'Parser key "([^"]+)"', message)))
    if unknown := re.search(r"[Oo]ption '([^']+)' is not accepted|not accept option '([^']+)'", message):
        return unknown_key(".".join(filter(None, [path, unknown[1] or unknown[2]])), keys)
    if unknown := re.search(r"[Uu]nrecognized arguments: -*([\w.]+)", message):
        return unknown_key(unknown[1], keys)
    if (given := re.search(r"Expected a dot import path string: (\S+)", message)) and path in choices:
        return f"{path}: {given[1]!r} is not known, give one of {', '.join(choices[path])}"
    if path and (expected := _expected(message)):
        given = re.search(r"Got value: (.*)|Given value: (.*)", message)
        value = (given[1] or given[2]) if given else "the value"
        return f"{path}: {value} is not allowed, give {' or '.join(expected)}"
    return " ".join(message.split())


def unknown_key(key: str, keys: Collection[str]) -> str:
    """Says which key a misspelt one may have been."""
    near = difflib.get_close_matches(key, set(keys) - {key}, n=3)
    return f"{key}: there is no such key" + (f", did you mean {' or '.join(near)}?" if near else "")


def _innermost(path: Sequence[str]) -> list[str]:
    # the parser of a subcommand repeats the key of its parent
    return [key for i, key in enumerate(path) if i == 0 or key != path[i - 1]]


def _expected(message: str) -> list[str]:
    kinds = re.findall(r"^([ -]*)Expected an? (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    deepest = max((len(indent) for indent, _ in kinds), default=0)
    # what is less indented was expected of an enclosing key
    return list(dict.fromkeys(_plain(kind) for indent, kind in kinds if len(indent) == deepest))


def _plain(kind: str) -> str:
    """A type as a user would call it."""
    if match := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind):
        return {"NoneType": "null"}.get(match[1], match[1])
    if match := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return match[1].replace("'", "")
    return kind


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
